const fs = require('node:fs');

class Point {
  constructor(x, y = 0) {
    Object.assign(this, { x, y });
  }
}

async function walk(items, ...rest) {
  await null;
  return items.map((item, index) => `${index}: ${item}`).concat(rest);
}

console.log(6 * 7, new Point(Math.PI), [1, 2].map((n) => n ** 2), { a: null, b: 'x' }, new Map([[1, new Set([2])]]));
console.error(JSON.stringify(JSON.parse('{"a": [1, 2.5, "x"]}')), fs.existsSync('/workspace'), /b+/.test('abba'));
try {
  null.missing;
} catch (error) {
  console.log('caught', error.message);
}
walk(['a', 'b'], 'c').then((all) => console.log(all));
setTimeout(() => console.log('later'), 1);
