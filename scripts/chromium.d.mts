// The types of chromium.mjs, for tests.
/** What CHROMIUM names, or the first of the usual names on PATH and in /usr/bin; undefined where there is none. */
export function findChromium(env?: NodeJS.ProcessEnv): string | undefined;
