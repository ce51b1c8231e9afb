// Runs one program in this warmed Node.js, as `node main.js` would.
//
// argv: this file, the program's path. Descriptors: 1000 tells to go, 1001 takes what is said to the agent.
'use strict';

const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const vm = require('node:vm');

const REQUEST = 1000;
const written = process.argv[2];

// Opened anew, the control pipe is closed in children; the numbered one would be theirs too.
const control = fs.openSync('/proc/self/fd/1001', 'w');
fs.closeSync(1001);

warmUp();
say('R');
const told = fs.readSync(REQUEST, Buffer.alloc(2));
fs.closeSync(REQUEST);
if (told === 0) process.reallyExit(0); // The agent does not need this interpreter.

applyEnvironment(path.join(path.dirname(written), 'env'));
const program = nameByKind(written);
process.argv = [process.argv[0], program];
process.execArgv = [];
resolveFromWorkspace(program);
announceExit();
// From a tick of its own, so that the program's stack traces do not show this file.
process.nextTick(Module.runMain, program);

/** Touches what is made lazily: the streams, the console's formatting, the compiler. */
function warmUp() {
  void process.stdout;
  void process.stderr;
  void require('node:util').inspect({ a: [1, 'x', new Map()] });
  void new vm.Script('(async () => { await 1; })()').runInThisContext();
  void Module.createRequire('/workspace/');
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
  const programUrl = pathToFileURL(file).href;
  const workspace = process.cwd();
  const inWorkspace = path.join(workspace, 'main.js');
  const parentURL = pathToFileURL(inWorkspace).href;
  Module.registerHooks({
    resolve(specifier, context, next) {
      if (context.parentURL !== programUrl) return next(specifier, context);
      const isRelative = /^\.\.?(\/|$)/.test(specifier);
      return next(isRelative ? path.resolve(workspace, specifier) : specifier, { ...context, parentURL });
    },
  });
  // `require` of a package looks beside the file whatever a hook says, and then here.
  const { NODE_PATH } = process.env;
  process.env.NODE_PATH = [path.join(workspace, 'node_modules'), NODE_PATH].filter(Boolean).join(path.delimiter);
  Module._initPaths();
  if (NODE_PATH === undefined) delete process.env.NODE_PATH;
  else process.env.NODE_PATH = NODE_PATH;
  if (/\.m[jt]s$/.test(file)) {
    const module = { exports: {}, filename: file, id: '.' };
    const require = Module.createRequire(inWorkspace);
    require.main = module;
    for (const [name, value] of Object.entries({ require, module, __filename: file, __dirname: path.dirname(file) })) {
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
    }
  }
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
    if (event === 'exit' && this === process && !isFatal && process.pid === pid) {
      say(`D${(process.exitCode ?? rest[0] ?? 0) & 0xff}\n`);
    }
    return result;
  };
}
