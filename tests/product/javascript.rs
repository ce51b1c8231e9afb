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
fn typescript_has_decorators_and_jsx() {
    let standard = "
function logged<T, A extends unknown[], R>(method: (this: T, ...rest: A) => R, context: ClassMethodDecoratorContext) {
  return function (this: T, ...rest: A): R { console.log('call', context.name); return method.apply(this, rest); };
}
class Adder {
  @logged
  add(a: number, b: number): number { return a + b; }
}
console.log(new Adder().add(1, 2));
";
    check(standard, 0, "call add\n3\n", "");
    let older = "
import { createRequire } from 'node:module';
const seen: string[] = [];
function logged(target: object, key: string, descriptor: PropertyDescriptor) {
  const method = descriptor.value;
  descriptor.value = function (...rest: unknown[]) { seen.push(key); return method.apply(this, rest); };
}
function inject(target: object, key: string | undefined, index: number) { seen.push(`parameter ${index}`); }
class Service {
  constructor(@inject private readonly name: string) {}
  @logged greet(): string { return this.name; }
}
console.log(new Service('x').greet(), seen, typeof createRequire);
";
    check(older, 0, "x [ 'parameter 0', 'greet' ] function\n", "");
    let elements = "
const React = { createElement: (tag: any, attributes: any, ...children: any[]) => ({ tag, ...attributes, children }) };
interface Props { name: string }
const Greeting = ({ name }: Props) => <b id=\"x\">hello {name}</b>;
console.log(JSON.stringify(<Greeting name=\"y\" />), JSON.stringify(Greeting({ name: 'z' })));
";
    check(
        elements,
        0,
        "{\"name\":\"y\",\"children\":[]} {\"tag\":\"b\",\"id\":\"x\",\"children\":[\"hello \",\"z\"]}\n",
        "",
    );
    check("function h(tag) { return tag; }\nconsole.log(<p/>);", 0, "p\n", "");
    check(
        "console.log(<p/>);",
        1,
        "",
        "main.tsx:1\nconsole.log(<p/>);\n            ^\n\nReferenceError: React is not defined",
    );
}

#[test]
fn what_is_wrong_with_typescript_is_shown_where_it_is() {
    // JavaScript would blame the first type, and Node.js what esbuild has made of the line.
    let typed = "const x: number = 1;\n\nlet y = ;";
    check(
        typed,
        1,
        "",
        "/run/program/main.ts:3\n\nlet y = ;\n        ^\n\nSyntaxError: Expression expected\n\nNode.js v",
    );
    let decorated = "const d = (v: any, _: any) => v;\nclass A { @d m() {} }\nlet a: number = 1; let a = 2;";
    let shown = "main.ts:3\nlet a: number = 1; let a = 2;\n                       ^\n\nSyntaxError: The symbol \"a\" has already been declared";
    check(decorated, 1, "", shown);
    check(
        "const x: string = <b>hi</i>;",
        1,
        "",
        "main.tsx:1\nconst x: string = <b>hi</i>;\n                         ^\n\nSyntaxError: Unexpected closing \"i\" tag",
    );
    let thrown = "const d = (v: any, _: any) => v;\ninterface Unseen { x: 1 }\nclass A {\n  @d m(): never {\n    throw new Error('here');\n  }\n}\nnew A().m();";
    check(thrown, 1, "", "main.ts:5\n    throw new Error('here');\n");
    check(
        "import fs from 'node:fs';\nlet x = ;",
        1,
        "",
        "main.mjs:2\nlet x = ;\n        ^\n\nSyntaxError: Unexpected token ';'",
    );
    check("let a = 1;\nlet a = 2;", 1, "", "SyntaxError: Identifier 'a' has already been declared");
}

/// Files in TypeScript, as projects have them, and programs that use them.
const PROJECT: &str = r#"
cat >slug.ts <<'END'
export enum Case { Lower = 'lower' }
export const slug = (text: string): string => text.toLowerCase();
END
cat >adder.ts <<'END'
const logged = (method: any, context: ClassMethodDecoratorContext) => function (this: any, ...rest: any[]) {
  console.log('call', context.name);
  return method.apply(this, rest);
};
export class Adder { @logged add(a: number, b: number) { return a + b; } }
END
cat >view.tsx <<'END'
const React = { createElement: (tag: string) => tag };
export const view = <main/>;
END
cat >main.ts <<'END'
import { Case, slug } from './slug.js';
import { Adder } from './adder';
import { view } from './view.js';
console.log(slug('A'), Case.Lower, new Adder().add(1, 2), view);
END
cat >slug.test.ts <<'END'
import test from 'node:test';
import { slug, Case } from './slug.js';
test('slug', (t) => t.assert.equal(slug('LOWER'), Case.Lower));
END
"#;

#[test]
fn files_in_typescript_are_imported_and_run_by_node() {
    let printed = "call add\na lower 3 main\n";
    let code =
        format!("require('child_process').execSync({PROJECT:?}, {{ shell: '/bin/bash' }});\nimport('./main.js');");
    check(&code, 0, printed, "");
    check_case(Case {
        language: "shell",
        code: &format!("{PROJECT}node main.ts"),
        exit_code: 0,
        stdout: printed,
        stderr: "",
    });
    let code = format!(
        "{PROJECT}node --test --test-reporter=tap slug.test.ts | grep -E '^(not )?ok|^# pass'; echo 'console.log(process.execArgv)' >x.js; node x.js"
    );
    check_case(Case {
        language: "shell",
        code: &code,
        exit_code: 0,
        stdout: "ok 1 - slug\n# pass 1\n[]\n",
        stderr: "",
    });
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
