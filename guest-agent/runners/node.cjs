// Runs one program in this warmed Node.js, as `node main.js` would.
//
// argv: this file, the program's path. Descriptors: 1000 tells to go (`E`: with an environment; `P`: to rehearse a program of the
// agent's and to stay), 1001 takes what is said to the agent.
'use strict';

const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const v8 = require('node:v8');
const vm = require('node:vm');

const REQUEST = 1000;
const WORKSPACE = process.cwd();
const IN_WORKSPACE = path.join(WORKSPACE, 'main.js');
const written = process.argv[2];
let programUrl;
let isRehearsal;

// Opened anew, the control pipe is closed in children; the numbered one would be theirs too.
const control = fs.openSync('/proc/self/fd/1001', 'w');
fs.closeSync(1001);

warmUp();
announceExit();
registerResolver();
say('R');
hear();

/** Waits for word from the agent, and lets a program run. */
function hear() {
  const told = Buffer.alloc(2);
  if (fs.readSync(REQUEST, told) === 0) process.reallyExit(0); // The agent does not need this interpreter.
  isRehearsal = told.toString().startsWith('P');
  if (!isRehearsal) fs.closeSync(REQUEST);
  if (told.toString().startsWith('E')) applyEnvironment(path.join(path.dirname(written), 'env'));
  const program = nameByKind(written);
  process.argv = [process.argv[0], program];
  process.execArgv = [];
  resolveFromWorkspace(program);
  // Clones of this VM have the same generator state until it is seeded anew.
  v8.setFlagsFromString(`--random-seed=${randomSeed()}`);
  // The clock was another when this process started.
  const timeOrigin = Date.now() - performance.now();
  Object.defineProperty(performance, 'timeOrigin', { value: timeOrigin, configurable: true, enumerable: true });
  // From a tick of its own, so that the program's stack traces do not show this file.
  process.nextTick(Module.runMain, program);
}

/** A rehearsal has nothing left to do: leaves no trace of it, and waits again. */
function endRehearsal() {
  delete Module._cache[process.argv[1]];
  delete process.mainModule;
  say('D0\n');
  // Only something to do keeps the loop from ending.
  setImmediate(hear);
}

/** Touches what is made lazily: the streams, the console's formatting, the compiler. */
function warmUp() {
  void process.stdout;
  void process.stderr;
  void require('node:util').inspect({ a: [1, 'x', new Map()] });
  void new vm.Script('(async () => { await 1; })()').runInThisContext();
  void Module.createRequire('/workspace/');
}

/** From 1 to 2^31 - 1: what V8 takes. */
function randomSeed() {
  const source = fs.openSync('/dev/urandom', 'r');
  const bytes = Buffer.alloc(4);
  fs.readSync(source, bytes);
  fs.closeSync(source);
  return (bytes.readUInt32LE() >>> 1) || 1;
}

function say(words) {
  try {
    fs.writeSync(control, words);
  } catch {
    // The program closed it; the exit says the same.
  }
}

function applyEnvironment(file) {
  for (const variable of fs.readFileSync(file, 'utf8').split('\0').slice(0, -1)) {
    const at = variable.indexOf('=');
    process.env[variable.slice(0, at)] = variable.slice(at + 1);
  }
}

/** Gives the program the ending that tells Node.js what it is: a script, a module, or either in TypeScript. */
function nameByKind(file) {
  const source = fs.readFileSync(file, 'utf8');
  const named = file.replace(/\.js$/, kindOf(source));
  fs.renameSync(file, named);
  return named;
}

function kindOf(source) {
  if (isScript(source)) return '.cjs';
  if (isModule(source)) return '.mjs';
  try {
    const stripped = Module.stripTypeScriptTypes(source, { mode: 'transform' });
    if (isScript(stripped)) return '.cts';
    if (isModule(stripped)) return '.mts';
  } catch {
    // Not TypeScript either: the error that JavaScript gives is the one to see.
  }
  return /\b(import|export|await)\b/.test(source) ? '.mjs' : '.cjs';
}

function isScript(source) {
  try {
    vm.compileFunction(source, ['exports', 'require', 'module', '__filename', '__dirname']);
    return true;
  } catch {
    return false;
  }
}

function isModule(source) {
  try {
    new vm.SourceTextModule(source);
    return true;
  } catch {
    return false;
  }
}

/**
 * The program lies outside its working directory, and imports as if it lay there. A module gets `require` and its kin
 * as well: programs mix them with top-level await.
 */
function resolveFromWorkspace(file) {
  programUrl = pathToFileURL(file).href;
  // `require` of a package looks beside the file whatever a hook says, and then here.
  const { NODE_PATH } = process.env;
  process.env.NODE_PATH = [path.join(WORKSPACE, 'node_modules'), NODE_PATH].filter(Boolean).join(path.delimiter);
  Module._initPaths();
  if (NODE_PATH === undefined) delete process.env.NODE_PATH;
  else process.env.NODE_PATH = NODE_PATH;
  if (/\.m[jt]s$/.test(file)) {
    const module = { exports: {}, filename: file, id: '.' };
    const require = Module.createRequire(IN_WORKSPACE);
    require.main = module;
    for (const [name, value] of Object.entries({ require, module, __filename: file, __dirname: path.dirname(file) })) {
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
    }
  }
}

function registerResolver() {
  const parentURL = pathToFileURL(IN_WORKSPACE).href;
  Module.registerHooks({
    resolve(specifier, context, next) {
      if (context.parentURL !== programUrl) return next(specifier, context);
      const isRelative = /^\.\.?(\/|$)/.test(specifier);
      return next(isRelative ? path.resolve(WORKSPACE, specifier) : specifier, { ...context, parentURL });
    },
  });
}

/** Says the exit code once all `exit` listeners have run, before the process takes itself apart. */
function announceExit() {
  const pid = process.pid;
  let isFatal = false;
  const emit = process.emit;
  process.emit = function (event, ...rest) {
    // Node.js prints a fatal error after the `exit` event: then the end of the process is the end.
    if (event === 'uncaughtExceptionMonitor') isFatal = true;
    const result = Reflect.apply(emit, this, [event, ...rest]);
    if (event === 'beforeExit' && isRehearsal) endRehearsal();
    if (event === 'exit' && this === process && !isFatal && process.pid === pid) {
      say(`D${(process.exitCode ?? rest[0] ?? 0) & 0xff}\n`);
    }
    return result;
  };
}
