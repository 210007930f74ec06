// The text that a needle is hidden in: sentences of a file, or these where none is given.

import type { CounterRandom } from "../data/philox.js";

/** Plain sentences without numbers, so that the needle's is the only one. */
const sentences = [
  "The road along the river was empty in the morning, and fog lay over the meadows.",
  "A baker opens her shop before the sun comes up, because dough does not wait.",
  "When the tide goes out, children walk across the sand and look for shells.",
  "The old library keeps its maps in flat drawers that smell of dust and wax.",
  "Snow had fallen during the night, so the train arrived later than usual.",
  "He repaired clocks for a living and never wore a watch himself.",
  "In autumn the hills turn brown, and smoke rises from the fields.",
  "Every evening the lighthouse keeper wrote a few lines about the weather.",
  "The market sells apples, onions, honey, and now and then a good chair.",
  "She learned to play the cello late, and practised with the windows closed.",
  "Two foxes live behind the school and are seen mostly in winter.",
  "A bridge of stone crosses the valley where the mill used to stand.",
  "The gardener says that roses need less water than people think.",
  "On clear nights the shepherds could name more stars than the teachers.",
  "The ferry carries letters, bicycles, and a cow when it has to.",
  "Rain on a tin roof makes a sound that some find restful.",
  "The engineer kept a notebook of mistakes and read it before each new design.",
  "Wool is washed, combed, spun, and only then given its colour.",
  "Nobody remembers who planted the chestnut tree in front of the station.",
  "The choir meets on Thursdays and sings whatever its members bring along.",
  "A good map shows where the paths are and where they end.",
  "The cat sleeps on the printer because it stays warm after work.",
  "They painted the boat green again, though everyone had wanted it blue.",
  "In the museum there is a bell that was never rung.",
  "The postman knows which dogs bark and which of them mean it.",
  "Bread keeps longer in a wooden box than in a bag.",
  "The surveyors slept in tents and measured the plain from one end to the other.",
  "When the wind turns north, the fishermen stay at home and mend their nets.",
] as const;

/** Sentences of a text, each with what ends it; line breaks become spaces. */
export function sentencesOf(text: string): string[] {
  return (text.match(/[^.!?]*[.!?]+["')\]]*(?=\s|$)|[^.!?]+$/g) ?? [])
    .map((sentence) => sentence.replace(/\s+/g, " ").trim())
    .filter((sentence) => sentence !== "");
}

/** Sentences without end: those given in their order from a random one on, or the built-in ones shuffled. */
export function* endlessSentences(given: readonly string[] | null, random: CounterRandom): Generator<string> {
  if (given !== null) {
    for (let i = random.below(given.length); ; i++) yield given[i % given.length] as string;
  }
  for (;;) {
    const order: string[] = [...sentences];
    for (let i = order.length - 1; i > 0; i--) {
      const j = random.below(i + 1);
      [order[i], order[j]] = [order[j] as string, order[i] as string];
    }
    yield* order;
  }
}
