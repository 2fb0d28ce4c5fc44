'use strict';

const drop = document.getElementById('drop');
const input = document.getElementById('files');
const results = document.getElementById('results');

function element(name, text, parent) {
  const node = document.createElement(name);
  node.textContent = text;
  parent.append(node);
  return node;
}

function picture(source, caption, parent) {
  const figure = element('figure', '', parent);
  const image = element('img', '', figure);
  image.src = source;
  image.alt = caption;
  element('figcaption', caption, figure);
}

function show(article, file, answer) {
  const pictures = element('div', '', article);
  pictures.className = 'pictures';
  picture(URL.createObjectURL(file), 'picture', pictures);
  if (answer.map) {
    const name = answer.classes[0].name;
    picture(answer.map, 'map', pictures);
    const text = `Map: the redder an area, the more it raised the score of “${name}”.`;
    element('p', `${text} Dark blue areas did not raise it.`, pictures);
  }
  const list = element('ol', '', article);
  for (const { name, probability } of answer.classes) {
    const item = element('li', '', list);
    const line = element('span', '', item);
    element('b', name, line);
    element('span', `${(100 * probability).toFixed(1)} %`, line);
    const bar = element('meter', '', item);
    bar.value = probability;
    bar.setAttribute('aria-label', name);
  }
}

async function predict(file) {
  const article = document.createElement('article');
  element('h2', file.name, article);
  const note = element('p', 'Looking …', article);
  results.prepend(article);
  try {
    const response = await fetch('/predict?map=1', {
      method: 'POST',
      headers: { 'Content-Type': 'application/octet-stream' },
      body: file,
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    note.remove();
    show(article, file, answer.images[0]);
  } catch (error) {
    note.className = 'error';
    note.setAttribute('role', 'alert');
    note.textContent = error.message;
  }
}

async function predictAll(files) {
  // Send one file at a time, so that other users are served in between.
  for (const file of files) await predict(file);
}

input.addEventListener('change', async () => {
  const files = [...input.files];
  input.value = '';
  await predictAll(files);
});
for (const kind of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle('over', kind === 'dragover');
  });
}
document.addEventListener('drop', (event) => {
  predictAll(event.dataTransfer.files);
});
fetch('/healthz').then((response) => response.json()).then((answer) => {
  document.getElementById('network').textContent = `Network: ${answer.network}, ${answer.classes} classes`;
});
