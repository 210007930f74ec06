// How the ranks of a job share its work: world = data x sequence. Ranks that hold one sequence are neighbours.

import { Communicator } from "./communicator.js";

export interface MeshSizes {
  /** Ranks, or groups of them, that each take other sequences. */
  readonly data: number;
  /** P: ranks that share each sequence. */
  readonly sequence: number;
}

/** The groups that one rank belongs to; null where it is alone in one. */
export class Mesh {
  private constructor(
    readonly sizes: MeshSizes,
    /** Among all ranks. */
    readonly rank: number,
    /** All ranks: they hold different tokens. */
    readonly world: Communicator | null,
    /** Those that hold the same sequences. */
    readonly sequence: Communicator | null,
  ) {}

  /** Of a process that is alone. */
  static readonly alone = new Mesh({ data: 1, sequence: 1 }, 0, null, null);

  /** Opens the groups that are not the world's. open: a communicator of these ranks of the world. */
  static async open(
    sizes: MeshSizes,
    world: Communicator,
    open: (members: readonly number[]) => Promise<Communicator>,
  ): Promise<Mesh> {
    const { rank } = world;
    const first = rank - (rank % sizes.sequence);
    const members = Array.from({ length: sizes.sequence }, (_, i) => first + i);
    const sequence = sizes.data === 1 ? world : sizes.sequence === 1 ? null : await open(members);
    return new Mesh(sizes, rank, world, sequence);
  }

  /** Rank 0 of a job that is not there. */
  static ofMeta(sizes: MeshSizes): Mesh {
    const { data, sequence } = sizes;
    if (data * sequence === 1) return Mesh.alone;
    const world = Communicator.ofMeta(0, data * sequence);
    return new Mesh(sizes, 0, world, data === 1 ? world : sequence === 1 ? null : Communicator.ofMeta(0, sequence));
  }

  /** Which sequences of a step are this rank's. */
  get dataIndex(): number {
    return Math.floor(this.rank / this.sizes.sequence);
  }

  /** What is exchanged is given up: it ends as cancelled here, and fails on the other ranks. */
  abort(): void {
    for (const group of new Set([this.world, this.sequence])) group?.abort();
  }

  close(): void {
    for (const group of new Set([this.world, this.sequence])) group?.close();
  }
}
