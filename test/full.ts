// Whether the slow products of settings are to run too: npm run test:full.
export const full = process.env.LONGSEQ_TEST_FULL !== undefined;
