// Bundles the page into dist/: the page itself, the worker that decodes frames, and the codecs it loads when needed.
import { copyFile, mkdir, readFile, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { basename } from 'node:path';
import { build } from 'esbuild';

const require = createRequire(import.meta.url);
const CODEC = /new URL\('(@cornerstonejs\/codec-[^']+)', import\.meta\.url\)/g;

const NODE = /^(node:)?(crypto|events|fs|module|path|url|worker_threads|ws)$/;

// The loader names its codecs as packages; a browser needs files beside the script.
const codecs = {
  name: 'codecs',
  setup(bundle) {
    bundle.onLoad({ filter: /dicom-image-loader.*decoders.*\.js$/ }, async ({ path }) => {
      const text = await readFile(path, 'utf8');
      for (const [, name] of text.matchAll(CODEC)) {
        await copyFile(require.resolve(name), `dist/${basename(require.resolve(name))}`);
      }
      const local = (_, name) => `new URL('./${basename(require.resolve(name))}', import.meta.url)`;
      return { contents: text.replace(CODEC, local), loader: 'js' };
    });
    // Parts of packages that only run under Node.
    bundle.onResolve({ filter: NODE }, ({ path }) => ({ path, namespace: 'node' }));
    bundle.onLoad({ filter: /.*/, namespace: 'node' }, () => ({ contents: 'exports.EventEmitter = class {};' }));
  },
};

await rm('dist', { recursive: true, force: true });
await mkdir('dist');
await build({
  entryPoints: {
    main: 'src/main.js',
    decodeImageFrameWorker: 'node_modules/@cornerstonejs/dicom-image-loader/dist/esm/decodeImageFrameWorker.js',
  },
  outdir: 'dist',
  bundle: true,
  format: 'esm',
  platform: 'browser',
  target: 'es2022',
  minify: true,
  legalComments: 'linked',
  plugins: [codecs],
  logLevel: 'warning',
});
for (const file of ['index.html', 'page.css']) await copyFile(`src/${file}`, `dist/${file}`);
