const React = { createElement: (tag: string, attributes: object | null, ...children: unknown[]) => ({ tag, attributes, children }) };

function logged<T, A extends unknown[], R>(method: (this: T, ...rest: A) => R, context: ClassMethodDecoratorContext) {
  return function (this: T, ...rest: A): R {
    console.log(String(context.name));
    return method.apply(this, rest);
  };
}

class Page {
  constructor(private readonly title: string) {}
  @logged
  render() {
    return <h1 id="title">{this.title}</h1>;
  }
}

console.log(JSON.stringify(new Page('x').render()));
