// TypeScript beyond what Node.js runs by itself: decorators, JSX, and `./slug.js` where only slug.ts is there. The agent's runner has
// its programs run by these functions; bin/node preloads them where it is given TypeScript.
//
// Node.js is asked first, wherever it knows the syntax: it is done in a few milliseconds a file, while esbuild is a process (0.1 s under TCG).
'use strict';

const { spawnSync } = require('node:child_process');
const { existsSync, readFileSync } = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const { fileURLToPath, pathToFileURL } = require('node:url');
const vm = require('node:vm');

const ESBUILD = path.join(__dirname, 'esbuild');

// At the beginning of a line or of a member: not in a comment (` * @param`).
const DECORATOR = /(^|[{};(,])[ \t]*@[\w$(]|\bexport\s+(default\s+)?@/m;
const JSX = /<\/|\/>/;

/**
 * JavaScript with a source map for what may be TypeScript or JSX. The file's name is for messages; `.ts` and its kin mean that there is
 * no JSX. Throws a SyntaxError that shows the place.
 */
function transpile(source, file) {
  const options = [
    `--loader=${/\.[cm]?ts$/.test(file) ? 'ts' : 'tsx'}`,
    `--sourcefile=${file}`,
    '--sourcemap=inline',
    `--target=node${process.versions.node}`,
    '--log-level=error',
    '--color=false',
    ...jsxOptions(source, file),
  ];
  const isLegacy = LEGACY.test(source);
  let done = run(options, isLegacy, source);
  // Only the older kind decorates parameters.
  if (!isLegacy && done.stderr.includes('experimental decorators')) done = run(options, true, source);
  if (done.status === 0) return done.stdout;
  throw asSyntaxError(done, source, file);
}

// Decorators are those of the standard, as TypeScript has them since 5.0, unless the program shows that it was written for
// those which came before: by what they are given, or by packages that know no others.
const LEGACY =
  /\b(Typed)?PropertyDescriptor\b|\bdescriptor\.(value|get|set)\b|['"](reflect-metadata|typeorm|class-validator|class-transformer|@nestjs\/\w+)['"]/;

function run(options, isLegacy, source) {
  // A tsconfig.json is not looked for: it says nothing of a program that does not lie beside it.
  const compilerOptions = { experimentalDecorators: isLegacy, useDefineForClassFields: !isLegacy };
  const tsconfig = `--tsconfig-raw=${JSON.stringify({ compilerOptions })}`;
  const done = spawnSync(ESBUILD, [...options, tsconfig], { input: source, encoding: 'utf8', maxBuffer: 2 ** 28 });
  if (done.error) throw done.error;
  return done;
}

/**
 * What `<a/>` calls: `React.createElement` or `h` where the program has a name for it, as TypeScript and Preact have it; else React's
 * own module if that is installed, which needs no name. A program without any of them is told that React is not defined.
 */
function jsxOptions(source, file) {
  const binds = (name) => new RegExp(`\\b(import|const|let|var|function|as)\\b[^;'"()]*\\b${name}\\b`).test(source);
  if (!JSX.test(source) || binds('React')) return [];
  if (binds('h')) return ['--jsx-factory=h', '--jsx-fragment=Fragment'];
  try {
    Module.createRequire(file).resolve('react/jsx-runtime');
    return ['--jsx=automatic'];
  } catch {
    return [];
  }
}

/** What esbuild says in the form in which Node.js shows that a file cannot be parsed. */
function asSyntaxError({ stderr }, source, file) {
  const message = /\[ERROR\] (.*)/.exec(stderr)?.[1] ?? stderr.trim();
  const [, line, column] = (/^ *.+:(\d+):(\d+):$/m.exec(stderr) ?? [0, 1, 0]).map(Number);
  const error = new SyntaxError(message);
  const shown = `${file}:${line}\n${source.split('\n')[line - 1]}\n${' '.repeat(column)}^\n`;
  error.stack = `${shown}\nSyntaxError: ${message}\n    at ${file}:${line}:${column + 1}`;
  return error;
}

/** A hook of Node.js: TypeScript wants `./slug.js` to be written for what will be made of slug.ts. */
function resolve(specifier, context, next) {
  try {
    return next(specifier, context);
  } catch (error) {
    if (!/^(\.|\/|file:)/.test(specifier) || !/MODULE_NOT_FOUND|UNSUPPORTED_DIR/.test(error.code)) throw error;
    const parent = context.parentURL?.startsWith('file:') ? fileURLToPath(context.parentURL) : path.join(process.cwd(), 'x');
    const wanted = specifier.startsWith('file:') ? fileURLToPath(specifier) : path.resolve(path.dirname(parent), specifier);
    const found = candidates(wanted).find((name) => existsSync(name));
    if (found === undefined) throw error;
    // `require` takes no URL.
    return next(context.conditions.includes('require') ? found : pathToFileURL(found).href, context);
  }
}

function candidates(file) {
  const [, stem, kind] = /^(.*?)(?:\.([cm]?)jsx?)?$/s.exec(file);
  if (kind !== undefined) return [`${stem}.${kind}ts`, `${stem}.tsx`];
  return ['.ts', '.tsx', '.jsx', '/index.ts', '/index.tsx'].map((ending) => file + ending);
}

/** A hook of Node.js: the files that it cannot load by itself. */
function load(url, context, next) {
  const [, kind] = /^file:[^?#]*\.([cm]?ts|tsx|jsx)(?:[?#]|$)/.exec(url) ?? [];
  if (kind === undefined) return next(url, context);
  const file = fileURLToPath(url);
  const source = readFileSync(file, 'utf8');
  if (kind !== 'tsx' && kind !== 'jsx' && !DECORATOR.test(source)) return next(url, context);
  const code = transpile(source, file);
  return { format: formatOf(kind, context, code), source: code, shortCircuit: true };
}

function formatOf(kind, context, code) {
  if (kind === 'mts' || context.format?.startsWith('module')) return 'module';
  if (kind === 'cts' || context.format?.startsWith('commonjs')) return 'commonjs';
  try {
    vm.compileFunction(code, ['exports', 'require', 'module', '__filename', '__dirname']);
    return 'commonjs';
  } catch {
    return 'module';
  }
}

module.exports = { DECORATOR, JSX, transpile, resolve, load };

if (module.parent?.id === 'internal/preload') Module.registerHooks({ resolve, load });
