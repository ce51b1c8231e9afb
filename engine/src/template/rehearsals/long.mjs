import assert from 'node:assert';
import { Buffer } from 'node:buffer';
import { execFileSync, execSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import fs, { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import 'node:http';
import { Session } from 'node:inspector';
import { Socket } from 'node:net';
import os from 'node:os';
import path, { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { createInterface } from 'node:readline';
import { Readable, Transform, pipeline } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { URL, fileURLToPath, pathToFileURL } from 'node:url';
import { format, inspect, promisify } from 'node:util';
import 'node:worker_threads';
import vm from 'node:vm';
import { gzipSync } from 'node:zlib';

class Shape {
  #name;
  static count = 0;
  constructor(name) {
    this.#name = name;
    Shape.count++;
  }
  get name() {
    return this.#name;
  }
  area() {
    throw new Error('abstract');
  }
  toString() {
    return `${this.constructor.name}(${this.#name})`;
  }
}

class Square extends Shape {
  constructor(side) {
    super('square');
    this.side = side;
  }
  area() {
    return this.side ** 2;
  }
}

function* numbers(limit) {
  for (let i = 0; i < limit; i++) yield i;
}

async function* later(items) {
  for (const item of items) {
    await sleep(1);
    yield item;
  }
}

const fibonacci = (n, memo = {}) => (n < 2 ? n : (memo[n] ??= fibonacci(n - 1, memo) + fibonacci(n - 2, memo)));
const debounce = (work, delay) => {
  let timer;
  return (...rest) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...rest), delay);
  };
};

function values() {
  const words = 'the quick brown fox jumps over the lazy dog the end'.split(' ');
  const counts = words.reduce((all, word) => ({ ...all, [word]: (all[word] ?? 0) + 1 }), {});
  const [first, second, ...rest] = Object.entries(counts).sort(([, a], [, b]) => b - a);
  console.log(first, second, rest.length, new Set(words).size, new Map(Object.entries(counts)));
  console.log([...numbers(5)].map((n) => n * 2).filter((n) => n % 3).flatMap((n) => [n, n]), Array.from({ length: 3 }, (_, i) => i));
  console.log(fibonacci(50), new Square(3).area(), `${new Square(2)}`, new Square(1) instanceof Shape, typeof null, void 0, NaN, -0, 0.1 + 0.2);
  console.log(JSON.stringify({ a: [1, { b: null }], c: 'é', d: new Date(0) }, null, 2), JSON.parse('{"x": [1e3, "\\u00e9"]}'));
  console.log('2024-05-06'.match(/(?<year>\d{4})-(\d\d)/u).groups.year, 'a1b22'.replaceAll(/\d+/g, (d) => `<${d}>`), 'x'.padStart(3, '-'));
  console.log(new Date(Date.UTC(2024, 1, 29)).toISOString(), new Date(0).toLocaleDateString('en-GB'), (1234567.891).toLocaleString(), (5).toFixed(2));
  console.log(Number.parseInt('ff', 16), (255).toString(2), 10n ** 20n, Math.max(...[1, 2]), Math.round(2.5), Number('x'), [10, 9, 1].sort(), [3, 1].toSorted());
  console.log(new Uint8Array([1, 2]), Buffer.from('hello').toString('base64'), createHash('sha256').update('a').digest('hex').slice(0, 8), structuredClone({ a: [1] }));
  console.log(Object.groupBy?.([1, 2, 3], (n) => (n % 2 ? 'odd' : 'even')), new Proxy({}, { get: (_, key) => key }).anything, Symbol('s'), [1, [2, [3]]].flat(2));
  console.log(inspect({ deep: { deeper: { deepest: { end: 1 } } } }, { depth: 4 }), format('%s %d %j', 'a', 1, { b: 2 }), [undefined, , 3], new WeakMap());
  console.table([{ a: 1, b: 'x' }, { a: 2, b: 'y' }]);
  outer: for (const a of [1, 2]) {
    for (const b of [1, 2]) {
      if (a === b) continue outer;
      switch (b) {
        case 1:
          console.log('one');
          break;
        default:
          console.log('more');
      }
    }
  }
}

function errors() {
  const wrongs = [() => null.x, () => missing, () => JSON.parse('{'), () => new Shape('a').area(), () => assert.equal(1, 2), () => fs.readFileSync('/nowhere')];
  for (const wrong of wrongs) {
    try {
      wrong();
    } catch (error) {
      console.error(error instanceof TypeError ? error.stack : error);
    } finally {
      console.log('finally');
    }
  }
  console.error(new Error('outer', { cause: new RangeError('inner') }));
}

function files() {
  const folder = mkdtempSync(join(os.tmpdir(), 'rehearsal-'));
  try {
    const file = path.resolve(folder, 'a.json');
    writeFileSync(file, JSON.stringify([1, 2]));
    fs.appendFileSync(file, '\n');
    console.log(existsSync(file), JSON.parse(readFileSync(file, 'utf8')), fs.statSync(file).size, fs.readdirSync(folder), path.extname(file));
    console.log(pathToFileURL(file).pathname, fileURLToPath('file:///a'), new URL('https://a.b/c?d=e').searchParams.get('d'), gzipSync('a').length > 0);
  } finally {
    rmSync(folder, { recursive: true });
  }
  console.log(execSync('echo a').toString(), execFileSync('echo', ['b'], { encoding: 'utf8' }), os.cpus().length, process.platform, process.memoryUsage().rss > 0);
}

async function waiting() {
  const emitter = new EventEmitter();
  setImmediate(() => emitter.emit('ready', 1));
  console.log(await once(emitter, 'ready'), await Promise.all([1, sleep(1, 2), Promise.resolve(3)]), await Promise.allSettled([Promise.reject(new Error('no'))]));
  console.log(await Promise.race([sleep(1, 'first'), sleep(5)]), await Promise.any([Promise.resolve(1)]), await promisify(setTimeout)(1, 'late'));
  for await (const item of later(['a', 'b'])) console.log(item);
  let ticks = 0;
  await new Promise((resolve) => {
    const interval = setInterval(() => {
      if (++ticks === 2) resolve(clearInterval(interval));
    }, 1);
  });
  debounce(console.log, 1)('debounced');
  queueMicrotask(() => console.log('microtask'));
  process.nextTick(() => console.log('tick'));
  const upper = new Transform({ transform: (chunk, _, done) => done(null, chunk.toString().toUpperCase()) });
  const piped = pipeline(Readable.from(['a', 'b']), upper, () => {});
  for await (const chunk of piped) process.stdout.write(`${chunk}\n`);
  for await (const line of createInterface({ input: Readable.from(['x\n', 'y\n']) })) console.log(line);
  const child = spawn('cat', { stdio: ['pipe', 'pipe', 'inherit'] });
  child.stdin.end('through a child');
  console.log(String(await readAll(child.stdout)), performance.now() > 0);
  await writeFile('/tmp/rehearsal', 'text');
  console.log(await readFile('/tmp/rehearsal', 'utf8'));
  rmSync('/tmp/rehearsal');
}

async function readAll(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** How the calls of a session are compiled. Nothing is declared: the next program would find it. */
async function calls() {
  const heed = () => {};
  for (const event of ['SIGINT', 'uncaughtException']) process.on(event, heed).off(event, heed);
  const session = new Session();
  session.connect();
  const ask = (method, parameters) => new Promise((resolve) => session.post(method, parameters, (_, reply) => resolve(reply)));
  const evaluate = (expression) => ask('Runtime.evaluate', { expression, replMode: true, awaitPromise: true });
  for (const source of ['6 * 7', '[1, { a: await 2 }]', 'null.x', '(', "await import('node:fs')", '10n', 'for (const x of [1]) console.log(x)']) {
    const { result } = await new Promise((resolve) => {
      globalThis.rehearse = () => resolve(evaluate(source));
      new vm.Script('rehearse()').runInThisContext({ breakOnSigint: true });
    });
    const { objectId } = result;
    if (objectId === undefined) continue;
    await ask('Runtime.callFunctionOn', { objectId, functionDeclaration: 'function () { globalThis.rehearsed = this; }' });
    await ask('Runtime.releaseObject', { objectId });
    console.log(globalThis.rehearsed);
  }
  delete globalThis.rehearse;
  delete globalThis.rehearsed;
  session.disconnect();
  // How they are told of.
  const fifo = '/tmp/rehearsal-fifo';
  execFileSync('mkfifo', [fifo]);
  spawn('sh', ['-c', `for i in 1 2 3; do echo $i; sleep 0.005; done > ${fifo}`], { stdio: 'ignore' });
  const pipe = new Socket({ fd: fs.openSync(fifo), readable: true, writable: false });
  pipe.on('data', (chunk) => console.log(chunk.latin1Slice()));
  await once(pipe, 'end');
  rmSync(fifo);
}

values();
errors();
files();
await waiting();
await calls();
await calls();
console.log((await import('node:fs')).default === fs, import.meta.url.length > 0);
