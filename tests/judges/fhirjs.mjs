// Required bindings, reference targets and unknown elements as FHIR.js reads them.
import { createRequire } from "node:module";

const { Fhir } = createRequire(import.meta.url)("fhir/fhir");
const fhir = new Fhir();

export function judge(resource) {
  return fhir
    .validate(resource, { errorOnUnexpected: true })
    .messages.filter((message) => message.severity === "error" || message.severity === "fatal")
    .map((message) => ({ at: message.location ?? "", says: message.message }));
}
