// Runs one program in this warmed Node.js, as `node main.js` would.
//
// argv: this file, the program's path. Descriptors: 1000 tells to go (`E`: with an environment; `P`: to rehearse a program of the
// agent's and to stay; `+` behind it: with much memory), 1001 takes what is said to the agent.
'use strict';

const fs = require('node:fs');
const Module = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const v8 = require('node:v8');
const vm = require('node:vm');
const typescript = require('/usr/local/lib/sandbox/typescript.cjs');

const WORKSPACE = process.cwd();
const IN_WORKSPACE = path.join(WORKSPACE, 'main.js');
const written = process.argv[2];
const scriptUrl = pathToFileURL(written).href;
let programUrl;
let isRehearsal;
let isScript;
let resolver;
let rehearsals = 0;
let collectGarbage;

// What V8 compiles in a rehearsal, or is about to, the program would wait for: it is left to the program to have compiled what it
// executes often.
const COMPILERS = ['sparkplug', 'maglev', 'turbofan'];
let areCompilersOff = false;

// How far the heap may grow beyond what lived at the last collection, before the next one. V8 has decided by all the memory of a VM,
// which is more than most programs may use: they would be killed for what is garbage.
const GROWING_PERCENT = 25;

// Opened anew, the pipes are closed in children; the numbered ones would be theirs too.
const [request, control] = [[1000, 'r'], [1001, 'w']].map(([number, mode]) => {
  const pipe = fs.openSync(`/proc/self/fd/${number}`, mode);
  fs.closeSync(number);
  return pipe;
});
const randomness = fs.openSync('/dev/urandom', 'r');

// A program that looks for modules finds its own only.
for (const file of Object.keys(require.cache)) delete require.cache[file];

warmUp();
findInWorkspace();
announceExit();
say('R');
hear();

/** Waits for word from the agent, and lets a program run. */
function hear() {
  const told = Buffer.alloc(2);
  if (fs.readSync(request, told) === 0) process.reallyExit(0); // The agent does not need this interpreter.
  isRehearsal = told.toString().startsWith('P');
  if (told.toString().startsWith('E')) applyEnvironment(path.join(path.dirname(written), 'env'));
  // Clones of this VM have the same generator state until it is seeded anew.
  const growth = told[1] === 0x2b ? '' : ` --heap-growing-percent=${GROWING_PERCENT}`;
  v8.setFlagsFromString(`--random-seed=${randomSeed()}${switchCompilers(isRehearsal)}${growth}`);
  // The clock was another when this process started.
  const timeOrigin = Date.now() - performance.now();
  Object.defineProperty(performance, 'timeOrigin', { value: timeOrigin, configurable: true, enumerable: true });
  process.execArgv = [];
  const source = fs.readFileSync(written, 'utf8');
  const script = compileScript(source);
  isScript = script !== undefined;
  // Hooks lengthen the stack of every error that `require` throws.
  if (!isScript || /\bimport\b|['"`]\.\.?(\/|['"`])/.test(source)) resolver = registerResolver();
  if (isScript) runScript(script);
  else runNamed(source);
}

/**
 * As Node.js runs a CommonJS program, but compiled once, and not looked for. It begins in a tick of its own, so that its stack
 * traces do not show this file.
 */
function runScript(script) {
  const module = new Module(written, null);
  module.id = '.';
  module.filename = written;
  module.paths = Module._nodeModulePaths(path.dirname(written));
  process.argv = [process.argv[0], written];
  programUrl = scriptUrl;
  process.mainModule = Module._cache[written] = module;
  // A function of this file would be seen in stack traces.
  const require = Object.assign(module.require.bind(module), Module.createRequire(IN_WORKSPACE));
  Object.defineProperty(require, 'name', { value: 'require' });
  const given = [module.exports, require, module, written, path.dirname(written)];
  process.nextTick(Reflect.apply, script, module.exports, given);
  process.nextTick(() => {
    module.loaded = true;
  });
}

/** Any other program has a name that tells Node.js what it is. */
function runNamed(source) {
  // Node.js keeps modules by name: no other shall have the program's, nor another rehearsal's.
  const number = isRehearsal ? `-${++rehearsals}` : '';
  const { ending, code, error } = understand(source);
  if (error) return endUnparsed(error);
  const program = written.replace(/\.js$/, number + ending);
  if (program !== written) fs.renameSync(written, program);
  if (code) {
    // The agent's file cannot be written to, but replaced.
    fs.unlinkSync(program);
    fs.writeFileSync(program, code);
  }
  process.argv = [process.argv[0], program];
  programUrl = pathToFileURL(program).href;
  if (/\.m[jt]s$/.test(program)) giveRequire(program);
  process.nextTick(Module.runMain, program);
}

/** A rehearsal has nothing left to do: leaves no trace of it, and waits again. */
function endRehearsal() {
  resolver?.deregister();
  resolver = undefined;
  delete Module._cache[process.argv[1]];
  delete process.mainModule;
  for (const name of ['require', 'module', '__filename', '__dirname']) delete globalThis[name];
  // Else the program would have to collect it all, soon.
  collectGarbage ??= garbageCollector();
  collectGarbage({ type: 'minor' });
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

function garbageCollector() {
  v8.setFlagsFromString('--expose-gc');
  const gc = vm.runInNewContext('gc');
  v8.setFlagsFromString('--no-expose-gc');
  return gc;
}

/** The flags that switch V8's compilers off or on again. An interpreter that has rehearsed nothing keeps what it was started with. */
function switchCompilers(off) {
  if (off === areCompilersOff) return '';
  areCompilersOff = off;
  return COMPILERS.map((name) => ` --${off ? 'no-' : ''}${name}`).join('');
}

/** From 1 to 2^31 - 1: what V8 takes. */
function randomSeed() {
  const bytes = Buffer.alloc(4);
  fs.readSync(randomness, bytes);
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

/** The ending of a name that says what a program is, and its JavaScript if Node.js has no way to it; or why it is nothing. */
function understand(source) {
  if (isModule(source)) return { ending: '.mjs' };
  let stripped;
  let wrong;
  try {
    stripped = Module.stripTypeScriptTypes(source, { mode: 'transform' });
    if (compileScript(stripped)) return { ending: '.cts' };
    if (isModule(stripped)) return { ending: '.mts' };
  } catch (error) {
    wrong = error;
  }
  if (wrong ? typescript.JSX.test(source) : isBeyondNode(source, stripped)) {
    try {
      const code = typescript.transpile(source, written.replace(/js$/, wrong ? 'tsx' : 'ts'));
      return { ending: compileScript(code) ? '.cjs' : '.mjs', code };
    } catch (error) {
      return { error };
    }
  }
  // Who knows the language gets further before something is wrong: V8 stops at the first type.
  if (wrong && placeOf(wrong) > placeOf(errorOf(source))) {
    const shown = wrong.stack.replace(/\n    at .*/s, '').replace(` [${wrong.code}]`, '');
    return { error: { stack: written.replace(/js$/, 'ts') + shown } };
  }
  return { ending: /\b(import|export|await)\b/.test(source) ? '.mjs' : '.js' };
}

/** Whether V8 does not take what Node.js has made of TypeScript; if it says the same of the source, that is not TypeScript. */
function isBeyondNode(source, stripped) {
  return typescript.DECORATOR.test(source) || errorOf(source)?.message !== errorOf(stripped)?.message;
}

/** What is wrong with a program that is neither script nor module, and where: V8 says that of scripts only, so it is shown one. */
function errorOf(source) {
  const blank = (words) => words.replace(/\S/g, ' ');
  const body = source.replace(/^(import\b[^;'"]*(['"]).*?\2;?|export( +default)?\b)/gm, blank);
  try {
    new vm.Script(`(async () => {\n${body}\n})`, { filename: written, lineOffset: -1 });
  } catch (error) {
    return error;
  }
}

/** Where parsing has failed, for comparing: the line, and the column of the caret below it. */
function placeOf(error) {
  const line = /^[^\n]*:(\d+)\n/.exec(error?.stack)?.[1] ?? 0;
  const column = /^ *\^/m.exec(error?.stack)?.[0].length ?? 0;
  return Number(line) + column / 1e6;
}

/** Ends as Node.js does with a program that it cannot parse. */
function endUnparsed(error) {
  fs.writeSync(2, `${error.stack}\n\nNode.js ${process.version}\n`);
  process.exit(1);
}

/** The function that a CommonJS program is; nothing if it is no such program. */
function compileScript(source) {
  try {
    return vm.compileFunction(source, ['exports', 'require', 'module', '__filename', '__dirname'], {
      filename: written,
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    });
  } catch {
    return undefined;
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

/** The program lies outside its working directory, and finds packages as if it lay there. */
function findInWorkspace() {
  const { NODE_PATH } = process.env;
  // `require` of a package looks beside the file whatever a hook says, and then here.
  process.env.NODE_PATH = [path.join(WORKSPACE, 'node_modules'), NODE_PATH].filter(Boolean).join(path.delimiter);
  Module._initPaths();
  if (NODE_PATH === undefined) delete process.env.NODE_PATH;
  else process.env.NODE_PATH = NODE_PATH;
}

/** A module gets `require` and its kin as well: programs mix them with top-level await. */
function giveRequire(file) {
  const module = { exports: {}, filename: file, id: '.' };
  const require = Module.createRequire(IN_WORKSPACE);
  require.main = module;
  for (const [name, value] of Object.entries({ require, module, __filename: file, __dirname: path.dirname(file) })) {
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  }
}

/** What a program imports is looked for as if it lay in its working directory. */
function registerResolver() {
  const parentURL = pathToFileURL(IN_WORKSPACE).href;
  return Module.registerHooks({
    resolve(specifier, context, next) {
      if (context.parentURL !== programUrl) return typescript.resolve(specifier, context, next);
      const isRelative = /^\.\.?(\/|$)/.test(specifier);
      return typescript.resolve(isRelative ? path.resolve(WORKSPACE, specifier) : specifier, { ...context, parentURL }, next);
    },
    load: typescript.load,
  });
}

/**
 * Says the exit code once nothing of the program's can run any more, before the process takes itself apart: when there is
 * nothing left to do and nobody listens, else when all `exit` listeners have run.
 */
function announceExit() {
  const pid = process.pid;
  const listeners = process.listenerCount('exit');
  let isFatal = false;
  const emit = process.emit;
  process.emit = announce;

  function announce(event, ...rest) {
    // Node.js prints a fatal error after the `exit` event: then the end of the process is the end.
    if (event === 'uncaughtExceptionMonitor') isFatal = true;
    const isLast = event === 'exit' || (event === 'beforeExit' && isUnheard());
    const result = Reflect.apply(emit, this, [event, ...rest]);
    if (event === 'beforeExit' && isRehearsal) endRehearsal();
    else if (isLast && this === process && !isFatal && process.pid === pid) {
      say(`D${(process.exitCode ?? rest[0] ?? 0) & 0xff}\n`);
    }
    return result;
  }

  // A module that waits for ever has Node.js itself change the code.
  function isUnheard() {
    if (!isScript) return false;
    const count = (event) => process.listenerCount(event);
    return process.emit === announce && count('beforeExit') === 0 && count('exit') === listeners;
  }
}
