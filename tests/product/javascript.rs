//! What users expect of a JavaScript or TypeScript program.

use serde_json::json;

use crate::harness::{Case, check as check_case, check_with};

#[track_caller]
fn check(code: &str, exit_code: i64, stdout: &str, stderr: &str) {
    check_case(Case { language: "javascript", code, exit_code, stdout, stderr });
}

#[test]
fn a_script_is_a_script() {
    let code = "
const fs = require('fs'); const { execSync } = require('child_process');
process.stdout.write('a'); execSync('echo b', { stdio: 'inherit' });
console.log(require.main === module, __filename.endsWith('main.js'), process.cwd(), process.argv.length);
sloppy = 1; console.log(sloppy);
fs.writeFileSync('lib.js', 'exports.x = 5'); console.log(require('./lib').x);
fs.mkdirSync('node_modules/p', { recursive: true }); fs.writeFileSync('node_modules/p/index.js', 'module.exports = 6');
console.log(require('p'));
setTimeout(() => console.log('later'), 20);
process.on('exit', (code) => console.log('exit', code));
process.exitCode = 7;
";
    check(code, 7, "ab\ntrue true /workspace 2\n1\n5\n6\nlater\nexit 7\n", "");
}

#[test]
fn all_of_v8s_compilers_are_there() {
    let code = "
require('v8').setFlagsFromString('--allow-natives-syntax');
const tiers = [['CompileBaseline', 'Sparkplug'], ['OptimizeMaglevOnNextCall', 'Maglev'], ['OptimizeFunctionOnNextCall', 'Turbofan']];
console.log(...tiers.map(([compile, tier]) => new Function(`
  function f(n) { return n * 2; }
  %PrepareFunctionForOptimization(f); f(1); f(2); %${compile}(f); f(3); return %ActiveTierIs${tier}(f);`)()));
";
    check(code, 0, "true true true\n", "");
}

#[test]
fn a_script_imports_from_where_it_works() {
    let code = "
require('fs').writeFileSync('lib.mjs', 'export const x = 1');
import('./lib.mjs').then((lib) => console.log(lib.x, module.loaded));
console.log(module.id, module.loaded, process.mainModule === module, this === exports, arguments.length, process.argv.length);
require('fs').writeFileSync('lib.js', 'console.log(module.parent === require.main, require.main.path)');
require('./lib');
console.log(module.children.length, module.path === __dirname, require.resolve('./lib'), require('path') === require('node:path'));
";
    let stdout = ". false true true 5 2\ntrue /run/program\n1 true /workspace/lib.js true\n1 true\n";
    check(code, 0, stdout, "");
}

#[test]
fn a_module_has_top_level_await_and_require() {
    let code = "
import { readFileSync, writeFileSync } from 'node:fs';
const os = require('os');
writeFileSync('lib.mjs', 'export const x = 1');
const { x } = await import('./lib.mjs');
console.log(await Promise.resolve(x + 1), typeof os.cpus, import.meta.url.startsWith('file:'));
";
    check(code, 0, "2 function true\n", "");
}

#[test]
fn typescript_runs() {
    let code = "
interface Point { x: number }
enum Kind { A = 3, B }
const point: Point = { x: Kind.B };
const value = await Promise.resolve(point.x as number);
console.log(value);
";
    check(code, 0, "4\n", "");
}

#[test]
fn exits_and_errors_are_a_programs() {
    check("console.log(1); process.exit(42)", 42, "1\n", "");
    check("function f() { throw new TypeError('bad') } f()", 1, "", "TypeError: bad\n    at f (/run/program/main.js:1");
    check("await 1; throw new Error('late')", 1, "", "Error: late");
    check("Promise.reject(new Error('unhandled'))", 1, "", "Error: unhandled");
    check("process.removeAllListeners(); throw new Error('kept')", 1, "", "Error: kept");
    check("let x = ;", 1, "", "SyntaxError: Unexpected token ';'");
    check("process.exitCode = 5", 5, "", "");
    check("process.on('beforeExit', () => { console.log('last'); process.exitCode = 3 })", 3, "last\n", "");
    let patched = "const { emit } = process; process.emit = function (event, ...rest) {
if (event === 'exit') { console.log('last'); process.exitCode = 4; } return emit.call(this, event, ...rest); };";
    check(patched, 4, "last\n", "");
    check("await new Promise(() => {})", 13, "", "Warning: Detected unsettled top-level await");
    check("process.kill(process.pid, 'SIGTERM'); setTimeout(() => {}, 10000)", 143, "", "");
}

#[test]
fn standard_input_and_environment_arrive() {
    let code = "
let text = ''; process.stdin.on('data', (chunk) => { text += chunk; });
process.stdin.on('end', () => console.log(JSON.stringify(text), process.env.A));
";
    check_with(
        json!({"language": "javascript", "code": code, "stdin": "é\n", "env": {"A": "1=2"}}),
        0,
        "\"é\\n\" 1=2\n",
        "",
    );
    let arguments = json!({"language": "javascript", "code": "console.log(new Date(0).getHours(), process.title)",
        "env": {"TZ": "XYZ-3", "NODE_OPTIONS": "--title=named"}});
    check_with(arguments, 0, "3 named\n", "");
}

#[test]
fn workers_children_and_crypto_work() {
    let code = "
const { Worker } = require('worker_threads'); const { fork } = require('child_process');
const worker = new Worker('require(\"worker_threads\").parentPort.postMessage(1)', { eval: true });
worker.on('message', (m) => {
  console.log('worker', m, require('crypto').randomUUID().length);
  require('fs').writeFileSync('child.js', 'process.send(2)');
  fork('./child.js').on('message', (m) => console.log('child', m));
});
";
    check(code, 0, "worker 1 36\nchild 2\n", "");
}
