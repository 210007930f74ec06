// How the ranks of a job share its work: world = data x ring x ulysses. Ranks that hold one sequence are neighbours, and
// among them those that exchange tokens for heads.

import type { Device } from "../tensor/device.js";
import { Communicator } from "./communicator.js";

export interface MeshSizes {
  /** Ranks, or groups of them, that each take other sequences. */
  readonly data: number;
  /** Of the ranks that share a sequence: groups between which keys and values go round. */
  readonly ring: number;
  /** Ranks of such a group, which exchange tokens for heads. */
  readonly ulysses: number;
}

/** The ranks that hold one sequence, P = ring x ulysses. */
export interface SequenceGroup {
  /** Of this process among them. */
  readonly rank: number;
  readonly size: number;
  readonly all: Communicator;
  /** Of one ring position; null where this rank is alone there. */
  readonly ulysses: Communicator | null;
  /** Of one place in those groups; null where each of them has all tokens. */
  readonly ring: Communicator | null;
}

/** Opens a communicator of these ranks of the world, this one among them. */
type Open = (members: readonly number[], name: string) => Promise<Communicator> | Communicator;

/** The groups that one rank belongs to; null where it is alone in one. */
export class Mesh {
  private constructor(
    readonly sizes: MeshSizes,
    /** Among all ranks. */
    readonly rank: number,
    /** All ranks: they hold different tokens. */
    readonly world: Communicator | null,
    readonly sequence: SequenceGroup | null,
  ) {}

  /** Of a process that is alone. */
  static readonly alone = new Mesh({ data: 1, ring: 1, ulysses: 1 }, 0, null, null);

  /** P: ranks that share each sequence. */
  get sequenceSize(): number {
    return this.sizes.ring * this.sizes.ulysses;
  }

  /** Which sequences of a step are this rank's. */
  get dataIndex(): number {
    return Math.floor(this.rank / this.sequenceSize);
  }

  /** The ranks of each group that a rank belongs to. */
  static members({ ring, ulysses }: MeshSizes, rank: number): Record<"sequence" | "ring" | "ulysses", number[]> {
    const size = ring * ulysses;
    const first = rank - (rank % size);
    const row = rank - (rank % ulysses);
    const list = (count: number, from: number, step: number) =>
      Array.from({ length: count }, (_, i) => from + i * step);
    return {
      sequence: list(size, first, 1),
      ulysses: list(ulysses, row, 1),
      ring: list(ring, first + (rank % ulysses), ulysses),
    };
  }

  /** Opens the groups that are not the world's. */
  static async open(sizes: MeshSizes, world: Communicator, open: Open): Promise<Mesh> {
    const { data, ring, ulysses } = sizes;
    const { rank } = world;
    const size = ring * ulysses;
    if (size === 1) return new Mesh(sizes, rank, world, null);
    const members = Mesh.members(sizes, rank);
    const all = data === 1 ? world : await open(members.sequence, "sequence");
    const groups = {
      ulysses: ulysses === 1 ? null : ring === 1 ? all : await open(members.ulysses, "ulysses"),
      ring: ring === 1 ? null : ulysses === 1 ? all : await open(members.ring, "ring"),
    };
    return new Mesh(sizes, rank, world, { rank: rank % size, size, all, ...groups });
  }

  /** Rank 0 of a job that is not there, on machines of `perNode` ranks. */
  static ofMeta(sizes: MeshSizes, perNode = Number.POSITIVE_INFINITY): Mesh {
    const { data, ring, ulysses } = sizes;
    const size = ring * ulysses;
    if (data * size === 1) return Mesh.alone;
    // extent: from the first of its ranks to behind the last one.
    const of = (ranks: number, extent = ranks) => Communicator.ofMeta(0, ranks, extent <= perNode ? "node" : "network");
    const world = of(data * size);
    if (size === 1) return new Mesh(sizes, 0, world, null);
    const all = data === 1 ? world : of(size);
    return new Mesh(sizes, 0, world, {
      rank: 0,
      size,
      all,
      ulysses: ulysses === 1 ? null : ring === 1 ? all : of(ulysses),
      ring: ring === 1 ? null : ulysses === 1 ? all : of(ring, size),
    });
  }

  get #groups(): Set<Communicator> {
    const { all, ulysses, ring } = this.sequence ?? { all: null, ulysses: null, ring: null };
    return new Set([this.world, all, ulysses, ring].filter((group) => group !== null));
  }

  /** Whether ranks compare what they do, from here on: see Communicator. */
  compare(device: Device, on: boolean): void {
    for (const group of this.#groups) group.compare(device, on);
  }

  /** See Communicator. */
  setPatience(seconds: number): void {
    for (const group of this.#groups) group.setPatience(seconds);
  }

  /** What is exchanged is given up: it ends as cancelled here, and fails on the other ranks. */
  abort(): void {
    for (const group of this.#groups) group.abort();
  }

  /** Closes the groups but the world's, which outlives them. */
  close(): void {
    for (const group of this.#groups) if (group !== this.world) group.close();
  }
}
