// What other addons get: the backend's table. A tensor's bytes come from `tensor.native()`.
import type { Device } from "./tensor/device.js";
import { device as openDevice } from "./tensor/device.js";

/** An external with the type tag of longseq/backend.h around an ls_native_backend. */
export const backendTable = (device: Device | string): object => openDevice(device).backendTable();
