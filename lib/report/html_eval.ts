// The drawings of `longseq eval`: loss against position, tables by file, and the heat map of the needle test.

import type { EvalResults, LossFigures, LossResults, NeedleResults } from "./eval_results.js";
import { formatLoss } from "./format.js";
import { heatMap, legend, lineChart, type Series } from "./html_chart.js";
import { card, escapeHtml, numbers, whole } from "./html_parts.js";

/** Colours of the lines of files; the line of all is black. */
const colours = ["blue", "orange", "aqua", "violet", "magenta", "yellow"] as const;

const figures = ({ tokens, loss, perplexity, standardError }: LossFigures): string[] => [
  whole(tokens),
  formatLoss(loss) + (standardError === null ? "" : ` &plusmn; ${standardError.toPrecision(2)}`),
  perplexity === null ? "none" : perplexity.toPrecision(5),
];

/** Where a bucket's point lies: in its middle as the axis has it. */
const middle = (begin: number, end: number): number => Math.sqrt(Math.max(1, begin) * end);

function lossCards({ files, positions, total, sequenceLength }: LossResults): string {
  const at = positions.map(({ begin, end }) => middle(begin, end));
  const shown = files.length > 1 && files.length <= colours.length ? files : [];
  const of = (list: LossResults["positions"]) => {
    const byBegin = new Map(list.map(({ begin, loss }) => [begin, loss]));
    return positions.map(({ begin }) => byBegin.get(begin) ?? null);
  };
  const series: Series[] = [
    ...shown.map((file, i) => ({ name: file.file, colour: colours[i] as string, values: of(file.positions) })),
    { name: files.length > 1 ? "all files" : (files[0]?.file ?? "all"), colour: "text", values: of(positions) },
  ];
  const cut = sequenceLength === null ? "" : ` Longer documents were cut into pieces of ${whole(sequenceLength)}.`;
  const curve = card(
    "eval-positions",
    "Loss against position",
    "Mean loss of the tokens that have so many tokens of their document before them, in nats: where a longer context helps, " +
      `it falls.${cut}`,
    lineChart({
      label: "Loss against position",
      steps: at,
      x: {
        name: "tokens before",
        logarithmic: true,
        format: whole,
        head: (i) => {
          const { begin, end } = positions[i] as { begin: number; end: number };
          return `${whole(begin)} to ${whole(end - 1)} tokens before`;
        },
      },
      series,
      format: (value) => String(Number(value.toFixed(4))),
      zero: false,
    }) +
      legend(series) +
      numbers(
        ["tokens before", "predicted", "loss", "perplexity"],
        positions.map((one) => [`${whole(one.begin)} to ${whole(one.end - 1)}`, ...figures(one)]),
      ),
  );
  const table = card(
    "eval-files",
    "Loss by file",
    "Each document alone; the loss is the mean over tokens, in nats, its error as if tokens were independent.",
    numbers(
      ["file", "documents", "predicted", "loss", "perplexity"],
      [
        ...files.map((file) => [escapeHtml(file.file), String(file.documents), ...figures(file)]),
        ["all", String(total.documents), ...figures(total)],
      ],
    ),
  );
  return `<div class="pair">${curve}${table}</div>`;
}

function needleCard({ cells, chat, haystack, seed }: NeedleResults): string {
  const lengths = [...new Set(cells.map(({ length }) => length))];
  const depths = [...new Set(cells.map(({ depth }) => depth))];
  const values = depths.map((depth) =>
    lengths.map((length) => {
      const cell = cells.find((one) => one.length === length && one.depth === depth);
      if (cell === undefined) return null;
      const { found, trials, loss, tokens } = cell;
      return {
        value: found / trials,
        text: `${found}/${trials}`,
        tip:
          `${whole(length)} tokens (${whole(tokens)}), needle at ${depth}%\n` +
          `found ${found} of ${trials}, loss of the answer ${formatLoss(loss)}`,
      };
    }),
  );
  const text = haystack === null ? "the built-in sentences" : escapeHtml(haystack);
  return card(
    "eval-needle",
    "Needle test",
    `Whether a number hidden at a depth of a text of so many tokens is found: right answers of the trials. Text: ${text}, seed ${seed}` +
      `${chat ? ", as a turn of the chat template" : ""}.`,
    heatMap({
      label: "Needles found by length and depth",
      columns: lengths.map(whole),
      rows: depths.map((depth) => `${depth}%`),
      cells: values,
      x: "tokens",
      y: "depth",
    }),
  );
}

/** The cards of what was measured; nothing where nothing was. */
export function evalCards({ loss, needle }: EvalResults): string {
  return (loss === null ? "" : lossCards(loss)) + (needle === null ? "" : needleCard(needle));
}
