import { readFileSync } from 'node:fs';

interface Shape {
  readonly name: string;
  area(): number;
}

type Named<T> = { [K in keyof T]?: T[K] } & { name: string };

enum Kind {
  Square = 'square',
  Circle = 'circle',
}

abstract class Base implements Shape {
  constructor(
    public readonly name: string,
    protected kind: Kind = Kind.Square,
  ) {}
  abstract area(): number;
}

class Square extends Base {
  private side: number;
  constructor(side: number) {
    super('square');
    this.side = side;
  }
  override area(): number {
    return this.side ** 2;
  }
}

namespace Totals {
  export const of = (shapes: Shape[]): number => shapes.reduce((sum: number, shape) => sum + shape.area(), 0);
}

function first<T extends object>(items: T[], fallback?: T): T | undefined {
  return (items[0] as T) ?? fallback!;
}

const shapes: Shape[] = [new Square(2), new Square(3)];
const named = { name: 'x' } satisfies Named<Shape>;
const value: number = await Promise.resolve(Totals.of(shapes) as number);
console.log(value, first(shapes)?.name, named, Kind.Circle, typeof readFileSync);
