// Runs one program in this warmed Node.js, as `node main.js` would; or the calls of a session.
//
// argv: this file, the program's path. Descriptors: 1000 tells what to run, 1001 takes what is said to the agent; the words are in
// `guest-agent/src/runner.rs`.
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
const writtenCall = '/run/calls/main.js';
const scriptUrl = pathToFileURL(written).href;
let programUrl;
let isRehearsal;
let isScript;
let isSession = false;
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

// What the calls of a session find of ours, by a symbol.
const OURS = Symbol.for('sandbox-mcp');

// How the inspector, which compiles calls, is found on a stack: what is below it is this file's.
const BELOW_A_CALL = /\n    at Session\.post \(node:inspector[^]*/;

// What a script cannot have.
const IMPORT = /^([ \t]*)import\s+(?:([\w$*\s{},]+?)\s*from\s*)?(['"])([^'"\n]+)\3(?:\s*with\s*(\{[^}]*\}))?/gm;
const EXPORT = /^([ \t]*)export\s+(?:default\s+)?(?=(?:async\s+)?(?:const|let|var|function|class)\b)/gm;
// Strings and comments are passed over.
const TOKEN = /'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\[^]|[^`\\])*`|\/\/.*|\/\*[^]*?\*\/|(?<![.\w$#])import(?=\s*\()/g;
const OUR_IMPORT = "globalThis[Symbol.for('sandbox-mcp')].import";

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
  const line = Buffer.alloc(32);
  const length = fs.readSync(request, line);
  if (length === 0) process.reallyExit(0); // The agent does not need this interpreter.
  const told = line.latin1Slice(0, length);
  isRehearsal = told[0] === 'P';
  if (told.includes('e')) applyEnvironment(`${told[0] === 'C' ? writtenCall : written}.env`);
  // Clones of this VM have the same generator state until it is seeded anew.
  const growth = told.includes('+') ? '' : ` --heap-growing-percent=${GROWING_PERCENT}`;
  v8.setFlagsFromString(`--random-seed=${randomSeed()}${switchCompilers(isRehearsal)}${growth}`);
  // The clock was another when this process started.
  const timeOrigin = Date.now() - performance.now();
  Object.defineProperty(performance, 'timeOrigin', { value: timeOrigin, configurable: true, enumerable: true });
  process.execArgv = [];
  if (told[0] === 'C') return beginSession(told);
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
  for (const source of ["import a, { b } from 'node:fs'", '{ a: 1 }']) void errorOf(asCall(source));
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
      say(`${isSession ? 'X' : 'D'}${(process.exitCode ?? rest[0] ?? 0) & 0xff}\n`);
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

/** Calls, one after the other: what one declares, the next ones have, and may declare again. */
function beginSession(told) {
  isSession = true;
  const inspector = new (require('node:inspector').Session)();
  inspector.connect();
  const ours = { import: (specifier, options) => import(specifier, options), value: undefined };
  Object.defineProperty(globalThis, OURS, { value: ours });
  programUrl = pathToFileURL(__filename).href;
  resolver = registerResolver();
  giveRequire(IN_WORKSPACE);
  process.argv = [process.argv[0]];
  const util = require('node:util');
  const go = new vm.Script("globalThis[Symbol.for('sandbox-mcp')].run()");
  const sources = [];
  let hadInput = false;
  // Ends the call that runs; nothing between calls.
  let interrupt = () => {};
  let code = 0;

  process.on('SIGINT', () => interrupt());
  say('B');
  process.on('uncaughtException', (error) => {
    if (process.listenerCount('uncaughtException') === 1) fail(error);
  });
  void serve(told);

  async function serve(told) {
    // Only now that it is known that there will be calls; what waits for it must not wait for the first.
    await call(told);
    new (require('node:net').Socket)({ fd: request, readable: true, writable: false })
      .on('data', (told) => void call(told.latin1Slice()))
      .on('end', () => process.reallyExit(0));
  }

  async function call(told) {
    const number = Number.parseInt(told.slice(1), 10);
    if (told.includes('e') && sources.length > 0) applyEnvironment(`${writtenCall}.env`);
    giveInput(told.includes('i'));
    code = 0;
    const interrupted = new Promise((_, reject) => {
      interrupt = () => reject(ours);
    });
    // Nobody may be waiting for it yet.
    interrupted.catch(() => {});
    try {
      const source = fs.readFileSync(writtenCall, 'utf8');
      sources[number] = source.split('\n');
      const value = await Promise.race([evaluate(asCall(source), number), interrupted]);
      if (value !== undefined) process.stdout.write(`${util.inspect(value)}\n`);
    } catch (error) {
      const isTerminated = error?.code === 'ERR_INSPECTOR_COMMAND' && /terminated/.test(error.message);
      if (error === ours || isTerminated || error?.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED') {
        fs.writeSync(2, 'Interrupted\n');
        code = 130;
      } else fail(error);
    }
    interrupt = () => {};
    say(`D${code}\n`);
  }

  /** Lets V8 run a call as a console does. Of an endless loop SIGINT makes an error. */
  function evaluate(expression, number) {
    return new Promise((resolve, reject) => {
      const options = { expression: `${expression}\n//# sourceURL=call-${number}`, replMode: true, awaitPromise: true };
      ours.run = () =>
        inspector.post('Runtime.evaluate', options, (error, reply) => {
          if (error) return reject(error);
          const { result, exceptionDetails } = reply;
          const thrown = exceptionDetails?.exception;
          const value = valueOf(thrown ?? result);
          if (!thrown) return resolve(value);
          if (value instanceof SyntaxError && !/\n    at .*call-\d/.test(value.stack)) {
            place(value, number, exceptionDetails);
          }
          reject(value);
        });
      go.runInThisContext({ breakOnSigint: true });
    });
  }

  /** What the inspector tells of. */
  function valueOf({ type, value, unserializableValue, objectId }) {
    if (objectId !== undefined) {
      const functionDeclaration = "function () { globalThis[Symbol.for('sandbox-mcp')].value = this.valueOf === Symbol.prototype.valueOf ? this.valueOf() : this; }";
      inspector.post('Runtime.callFunctionOn', { objectId, functionDeclaration });
      inspector.post('Runtime.releaseObject', { objectId });
      const found = ours.value;
      ours.value = undefined;
      return found;
    }
    if (unserializableValue === undefined) return type === 'undefined' ? undefined : value;
    return type === 'bigint' ? BigInt(unserializableValue.slice(0, -1)) : Number(unserializableValue);
  }

  /** Says where a call could not be parsed. */
  function place(error, number, { lineNumber, columnNumber }) {
    const below = `    at call-${number}:${lineNumber + 1}:${columnNumber + 1}`;
    error.stack = `${String(error)}\n${below}`;
  }

  /** Says what went wrong, as Node.js does: the line, what it was, and where it came from. */
  function fail(error) {
    code = 1;
    if (!util.types.isNativeError(error)) {
      fs.writeSync(2, `Uncaught ${util.inspect(error)}\n`);
      return;
    }
    const at = /call-(\d+):(\d+):(\d+)/.exec(error.stack);
    const line = at ? sources[at[1]]?.[at[2] - 1] : undefined;
    const shown = line === undefined ? '' : `<call ${at[1]}>:${at[2]}\n${line}\n${' '.repeat(at[3] - 1)}^\n\n`;
    try {
      error.stack = error.stack.replace(BELOW_A_CALL, '').replace(/\bcall-(\d+):/g, '<call $1>:');
    } catch {
      // It is frozen.
    }
    fs.writeSync(2, `${shown}${util.inspect(error)}\n`);
  }

  /** What a call reads. Without any, it is at the end at once, and not where the last one stopped. */
  function giveInput(isThere) {
    if (!isThere && !hadInput) return;
    hadInput = isThere;
    fs.closeSync(0);
    fs.openSync(isThere ? `${writtenCall}.stdin` : '/dev/null'); // The lowest number is given first.
    let stream;
    Object.defineProperty(process, 'stdin', {
      configurable: true,
      enumerable: true,
      get: () => (stream ??= fs.createReadStream(null, { fd: 0, autoClose: false })),
    });
  }
}

/** A call as V8 takes it: no script can have `import`, so that becomes what a script can have. */
function asCall(source) {
  let code = source;
  if (errorOf(source)) {
    try {
      const stripped = Module.stripTypeScriptTypes(source, { mode: 'transform' });
      if (!errorOf(stripped)) code = stripped;
      else if (typescript.DECORATOR.test(source)) code = typescript.transpile(source, `${written}.ts`);
    } catch {
      // V8 says what is wrong with it, unless it is more than TypeScript.
      if (typescript.JSX.test(source)) code = typescript.transpile(source, written.replace(/js$/, 'tsx'));
    }
  } else if (/^\s*\{[^]*\}\s*$/.test(source) && !errorOf(`(${source}\n)`)) {
    // An object, rather than a block: as consoles take it.
    code = `(${source}\n)`;
  }
  return withoutImports(code);
}

function withoutImports(code) {
  if (!/\b(import|export)\b/.test(code)) return code;
  const named = code.replace(EXPORT, '$1').replace(IMPORT, (all, indent, clause = '', _, from, attributes) => {
    const loaded = `await import(${JSON.stringify(from)}${attributes ? `, { with: ${attributes} }` : ''})`;
    const names = /\{([^}]*)\}/.exec(clause)?.[1].replace(/\b([\w$]+)\s+as\s+/g, '$1: ') ?? '';
    const whole = /\*\s*as\s+([\w$]+)/.exec(clause)?.[1];
    const first = /^\s*([\w$]+)/.exec(clause)?.[1];
    const taken = [first && `default: ${first}`, names.trim()].filter(Boolean).join(', ').replace(/\s+/g, ' ');
    const declared = [whole && `${whole} = ${loaded}`, taken && `{ ${taken} } = ${loaded}`].filter(Boolean).join(', ');
    // Lines keep their numbers.
    return indent + (declared ? `const ${declared}` : loaded) + '\n'.repeat(all.split('\n').length - 1);
  });
  return named.replace(TOKEN, (token) => (token === 'import' ? OUR_IMPORT : token));
}
