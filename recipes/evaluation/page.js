"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const control = (name) => document.getElementById(name);
let found = [], shown = 0;

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function picture(source, className, alt) {
  const image = element("img", className);
  image.src = source;
  image.alt = alt;
  return image;
}

// PAGE cards more, each made by card().
function show() {
  const next = found.slice(shown, shown + PAGE);
  control("gallery").append(...next.map(card));
  shown += next.length;
  control("more").hidden = shown >= found.length;
}

function show_found(rows, count) {
  found = rows;
  shown = 0;
  control("gallery").replaceChildren();
  control("count").textContent = count;
  show();
}

function add_options(name, values) {
  for (const value of new Set(values)) control(name).add(new Option(value, value));
}

function start(selects, filter) {
  for (const name of selects) control(name).addEventListener("change", filter);
  control("search").addEventListener("input", filter);
  control("more").addEventListener("click", show);
  filter();
}
