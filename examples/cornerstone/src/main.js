// One series of an Isocenter server as a stack: QIDO-RS finds it, WADO-RS metadata describes it, frames are its pixels.
import { Enums, RenderingEngine, init as initCore, utilities } from '@cornerstonejs/core';
import { init as initLoader, wadors } from '@cornerstonejs/dicom-image-loader';
import {
  Enums as ToolEnums,
  PanTool,
  StackScrollTool,
  ToolGroupManager,
  WindowLevelTool,
  ZoomTool,
  addTool,
  init as initTools,
} from '@cornerstonejs/tools';

const { MouseBindings } = ToolEnums;
const BUTTONS = [
  [WindowLevelTool, MouseBindings.Primary],
  [PanTool, MouseBindings.Auxiliary],
  [ZoomTool, MouseBindings.Secondary],
  [StackScrollTool, MouseBindings.Wheel],
];
const element = (id) => document.getElementById(id);

// The token lives in this variable alone: not in an address, not in a storage, gone with the page.
let token = '';
let viewport;

function say(text, failed = false) {
  element('says').textContent = text;
  element('says').className = failed ? 'failed' : '';
}

async function ask(address) {
  const headers = { Accept: 'application/dicom+json', Authorization: `Bearer ${token}` };
  const answer = await fetch(address, { headers, credentials: 'omit', referrerPolicy: 'no-referrer' });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(`${answer.status}: ${problem.detail ?? problem.title ?? answer.statusText}`);
  }
  return answer.json();
}

const value = (dataset, tag) => dataset[tag]?.Value?.[0];

async function seriesOf(study, wanted) {
  const found = await ask(`${study}/series?includefield=SeriesDescription`);
  const shown = found.filter((one) => (wanted ? value(one, '0020000E') === wanted : value(one, '00080060') !== 'SR'));
  if (!shown.length) throw new Error('the study has no such series');
  return value(shown[0], '0020000E');
}

async function imagesOf(series) {
  const instances = (await ask(`${series}/metadata`)).filter((one) => '00280010' in one);
  instances.sort((one, other) => (value(one, '00200013') ?? 0) - (value(other, '00200013') ?? 0));
  return instances.flatMap((instance) => {
    const frames = Number(value(instance, '00280008') ?? 1);
    return Array.from({ length: frames }, (_, at) => {
      const id = `wadors:${series}/instances/${value(instance, '00080018')}/frames/${at + 1}`;
      wadors.metaDataManager.add(id, instance);
      return id;
    });
  });
}

async function makeViewport() {
  await initCore();
  initLoader({ beforeSend: () => ({ Authorization: `Bearer ${token}` }), maxWebWorkers: 2 });
  initTools();
  const engine = new RenderingEngine('engine');
  engine.enableElement({ viewportId: 'stack', type: Enums.ViewportType.STACK, element: element('view') });
  const group = ToolGroupManager.createToolGroup('tools');
  for (const [tool, mouseButton] of BUTTONS) {
    addTool(tool);
    group.addTool(tool.toolName);
    group.setToolActive(tool.toolName, { bindings: [{ mouseButton }] });
  }
  group.addViewport('stack', 'engine');
  element('view').addEventListener('contextmenu', (event) => event.preventDefault());
  element('view').addEventListener(Enums.Events.IMAGE_RENDERED, describe);
  return engine.getViewport('stack');
}

function describe() {
  const { lower, upper } = viewport.getProperties().voiRange ?? {};
  if (lower === undefined) return;
  const place = `image ${viewport.getCurrentImageIdIndex() + 1} of ${viewport.getImageIds().length}`;
  const { windowWidth, windowCenter } = utilities.windowLevel.toWindowLevel(lower, upper);
  say(`${place}, window ${Math.round(windowWidth)} / ${Math.round(windowCenter)}`);
}

async function show() {
  const study = `${element('server').value.replace(/\/+$/, '')}/dicom-web/studies/${element('study').value}`;
  const series = `${study}/series/${await seriesOf(study, element('series').value)}`;
  // First, because the loader forgets what it knows of images when it starts.
  viewport ??= await makeViewport();
  const images = await imagesOf(series);
  await viewport.setStack(images, Math.floor(images.length / 2));
  viewport.render();
}

element('ask').addEventListener('submit', async (event) => {
  event.preventDefault();
  token = element('token').value;
  say('Loading …');
  try {
    await show();
  } catch (error) {
    say(`The series cannot be shown: ${error.message ?? error}`, true);
  }
});
