// Golden cases, five steps of AdamW as the CPU's, and every memory key, on the device under test.
import t from "tap";
import { trainingTests } from "../cuda/train_tests.js";
import { deviceName } from "./device.js";

t.setTimeout(0);
trainingTests(deviceName);
