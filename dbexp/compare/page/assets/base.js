// What all parts use: selectors, the page's data, which runs cannot be seen.
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const read = (id) => JSON.parse($(`#${id}`).textContent);
const data = read("data");
let figures = null;
let pictures = null;
const filtered = new Set(); // runs that the values chosen, the words to find and the brush leave out
const hidden = new Set(); // these, and the runs that are not ticked while others are
const hiddenElsewhere = new Set(); // these, without those that only the brush leaves out
const brush = new Map(); // label of a parallel axis -> the ranges that a run must pass through
const views = []; // parts that stand in the address: save(view), load(view) of URLSearchParams, reset() where they hide runs

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.onclick = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};
const bodyOf = (table) => $("tbody:not(.bounds)", table);
const breakable = (title) => title.split(/(?<=[=_])/).flatMap((part) => [part, make("wbr")]); // rank=16, not rank=1 6
