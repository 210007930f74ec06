// Ranks of one machine run on the cores near their GPU: what they copy to it, or wait for, need not cross to another socket.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { binding } from "../binding.js";

/** The numbers of a list as the system writes it, such as "0-3,8". */
export function coresOf(list: string): number[] {
  return list
    .trim()
    .split(",")
    .filter((part) => part !== "")
    .flatMap((part) => {
      const [first, last = first] = part.split("-").map(Number) as [number, number?];
      return Array.from({ length: last - first + 1 }, (_, i) => first + i);
    });
}

/** The cores that are nearest to the device at an address of the PCI bus; none where the system does not say. */
export function coresNear(pciAddress: string, devices = "/sys/bus/pci/devices"): number[] {
  if (pciAddress === "") return [];
  try {
    return coresOf(readFileSync(join(devices, pciAddress, "local_cpulist"), "utf8"));
  } catch {
    return [];
  }
}

/** Keeps this process on the cores near its GPU, unless LONGSEQ_PIN is 0; how many those are, 0: it is where it was. */
export function pinNear(pciAddress: string, env: NodeJS.ProcessEnv = process.env): number {
  if (env.LONGSEQ_PIN === "0") return 0;
  return binding.pinThreads(coresNear(pciAddress));
}
