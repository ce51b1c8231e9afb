// ==== an error that is not caught
function f(n) {
  throw new TypeError('n is ' + n);
}
f(1);
// ==== a stack
function f() { return new Error('x').stack; }
console.log(f());
console.trace('here');
// ==== an error with a cause
Error.stackTraceLimit = 1;
try { null.x; } catch (cause) { throw new Error('outer', { cause }); }
// ==== a syntax error
const x = ;
// ==== a name that is not there
console.log(nothing);
// ==== a module that is not there
require('nothing-of-that-name');
// ==== a promise that nobody waits for
Promise.reject(new Error('nobody waits'));
// ==== a promise that is rejected with a value
Promise.reject(42);
// ==== something thrown that is no error
throw { code: 1 };
// ==== the end, with a code
process.on('exit', (code) => console.log('exit', code));
process.exitCode = 3;
console.log('on');
// ==== the end at once
console.log('before');
process.exit(4);
// ==== what is there
console.log(typeof require, typeof module, typeof exports, __filename, __dirname === require('path').dirname(__filename), require.main === module);
console.log(process.argv.slice(1), process.execArgv, process.title, process.argv0);
console.log(module.id, module.filename, module.loaded, module.children, module.parent, this === module.exports);
console.log(Object.keys(require.cache).length, Object.keys(require.extensions));
// ==== globals
console.log(Object.getOwnPropertyNames(globalThis).sort().join(' '));
globalThis.x = 1;
var y = 2;
console.log(x, globalThis.y);
// ==== warnings
process.emitWarning('careful', { code: 'X1' });
process.on('warning', (warning) => console.log(warning.name, warning.message));
new (require('events'))().setMaxListeners(1).on('a', () => {}).on('a', () => {});
// ==== something deprecated
new Buffer(1);
require('url').parse('http://a.b:99999999/');
// ==== values that are shown
console.log({ a: [1, { b: { c: { d: 1 } } }], f() {}, [Symbol('s')]: new Map([[1, new Set([2])]]) }, [,'x'], -0, 10n, null, undefined);
console.log(new Error('inside').message, [new Date(0)], /x/g, new (class A { #p = 1; q = 2; })(), Buffer.from('é'), new Uint8Array(3));
console.log('%s is %d and %i, %j %o %%', 'a', 1.5, 2.7, { x: 1 }, [1]);
console.table([{ a: 1, b: 'x' }, { a: 2 }]);
console.error('to stderr'); console.group('g'); console.log('inner'); console.groupEnd(); console.assert(1 === 2, 'not equal'); console.count(); console.dir({ a: { b: { c: {} } } }, { depth: 0 });
// ==== the order of what waits
setTimeout(() => console.log('timeout'), 0);
setImmediate(() => console.log('immediate'));
process.nextTick(() => console.log('tick'));
Promise.resolve().then(() => console.log('promise'));
queueMicrotask(() => console.log('microtask'));
console.log('now');
// ==== errors in what waits
setTimeout(function late() { throw new RangeError('late'); }, 1);
// ==== an error that is caught at last
process.on('uncaughtException', (error, origin) => { console.log(origin, error.message); });
setTimeout(() => { throw new Error('a'); }, 1);
setTimeout(() => console.log('goes on'), 20);
// ==== a rejection that is seen
process.on('unhandledRejection', (reason) => console.log('seen', reason));
Promise.reject('x');
// ==== files and modules of its own
const fs = require('fs');
fs.writeFileSync('helper.js', 'module.exports = { value: 1 };\nmodule.exports.where = __filename;');
fs.writeFileSync('bad.js', 'exports.a = 1;\nthrow new Error("in a module");');
console.log(require(process.cwd() + '/helper.js'), fs.readdirSync('.'));
require(process.cwd() + '/bad.js');
// ==== numbers and texts
console.log(0.1 + 0.2, 1e21, (25).toString(36), parseInt('0x1f'), Number('x'), 2 ** 53 + 1, 5 % -3, -5 % 3, [10, 9, 1].sort());
console.log('ß'.toUpperCase(), 'a-b-c'.replaceAll('-', '+'), [...'a😀b'].length, 'é'.normalize('NFD').length, 'x'.padStart(3, '-'), `${[1, [2, 3]]}`);
console.log(new Intl.NumberFormat('de-DE').format(1234567.891), new Date(0).toLocaleDateString('en-GB', { timeZone: 'UTC' }), new Date(0).toString());
// ==== a stream to its end
process.stdin.on('data', (data) => console.log('data', data.length)).on('end', () => console.log('end'));
process.stdout.write('no end');
// ==== a child
const { execFileSync, spawnSync } = require('child_process');
console.log(execFileSync('echo', ['a']).toString(), spawnSync('sh', ['-c', 'exit 3']).status);
execFileSync('sh', ['-c', 'echo bad >&2; exit 2'], { stdio: 'pipe' });
// ==== recursion without end
function f() { return f(); }
f();
// ==== classes and generators
class A { static s = 1; #x = 2; get x() { return this.#x; } *[Symbol.iterator]() { yield* [1, 2]; } }
console.log([...new A()], new A().x, A.s, new A(), A, Object.getOwnPropertyNames(A.prototype), String(class {}), (() => {}).name);
new A().x = 1;
// ==== strict or not
console.log((function () { return this === globalThis; })(), delete Object.prototype);
undeclared = 1;
console.log(undeclared);
// ==== a worker
const { Worker, isMainThread } = require('worker_threads');
console.log(isMainThread);
new Worker('require("worker_threads").parentPort.postMessage(6 * 7)', { eval: true }).on('message', console.log).on('exit', (code) => console.log('exit', code));
// ==== a test
const test = require('assert');
try { test.deepStrictEqual({ a: 1, b: [1, 2] }, { a: 1, b: [1, 3] }); } catch (error) { console.log(error.message); }
test.equal(1, 2);
// ==== stack traces as data
Error.prepareStackTrace = (_, calls) => calls.map((call) => call.getFunctionName()).slice(0, 2);
function g() { return new Error().stack; }
console.log(g());
Error.prepareStackTrace = undefined;
Error.stackTraceLimit = 1;
console.log(new Error('short').stack);
