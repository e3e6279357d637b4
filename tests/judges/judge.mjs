// One judge for a whole run: `node judge.mjs medplum|fhirjs|invariants` reads lines {"key", "resource"} from standard
// input and answers each with a line {"key", "issues": [{"at", "says"}]}.
import readline from "node:readline";

const JUDGES = ["medplum", "fhirjs", "invariants"];
const name = process.argv[2];
if (!JUDGES.includes(name)) {
  console.error(`judge: say one of ${JUDGES.join(", ")}`);
  process.exit(2);
}
const { judge } = await import(`./${name}.mjs`);

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { key, resource } = JSON.parse(line);
  let issues;
  try {
    issues = judge(resource);
  } catch (error) {
    // A judge that breaks has not judged: that is a finding, too.
    issues = [{ at: resource.resourceType ?? "", says: `the judge broke: ${error.message}` }];
  }
  if (!process.stdout.write(JSON.stringify({ key, issues }) + "\n")) {
    await new Promise((resolve) => process.stdout.once("drain", resolve));
  }
}
