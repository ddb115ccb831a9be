"use strict";

// The page of the server: what is drawn or dropped is sent, and the answers are shown.

const paper = document.getElementById("paper");
const pen = paper.getContext("2d");
const message = document.getElementById("message");
const STROKE = 20; // of 280: MNIST's strokes are two of 28 pixels wide
const STEP = 8;
const WAIT_MS = 120;

let drawn = false;
let last = null; // where the pen is on the paper, while it is down
let cursor = { x: paper.width / 2, y: paper.height / 2, down: false };
let timer = 0;
let newest = 0; // answers to older drawings are dropped

function clear() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, paper.width, paper.height);
  cursor.down = drawn = false;
  newest += 1;
  clearTimeout(timer);
  message.textContent = "";
  document.getElementById("seen").replaceChildren();
  for (const section of document.querySelectorAll(".answer")) {
    section.querySelector("strong").textContent = "–";
    section.querySelector("ol").replaceChildren();
  }
}

function line(from, to) {
  drawn = true;
  pen.strokeStyle = "#111";
  pen.lineWidth = STROKE;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(to.x, to.y);
  pen.stroke();
}

function place(event) {
  const box = paper.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * paper.width,
    y: ((event.clientY - box.top) / box.height) * paper.height,
  };
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(() => { if (drawn) paper.toBlob(send, "image/png"); }, WAIT_MS);
}

async function send(picture) {
  const mine = ++newest;
  try {
    const response = await fetch("/predict", { method: "POST", body: picture });
    const answer = await response.json();
    if (mine !== newest) return;
    if (response.ok) show(answer);
    else message.textContent = answer.error;
  } catch (error) {
    if (mine === newest) message.textContent = "The server does not answer; is it still running?";
  }
}

function show(answer) {
  message.textContent = "";
  const seen = new Image();
  seen.src = answer.image;
  seen.alt = "The picture as the networks see it";
  document.getElementById("seen").replaceChildren(seen);
  for (const [variant, guesses] of Object.entries(answer.answers)) {
    const section = document.querySelector(`[data-variant="${CSS.escape(variant)}"]`);
    section.querySelector("strong").textContent = guesses[0].class;
    section.querySelector("ol").replaceChildren(...guesses.map(row));
  }
}

function row(guess) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  const meter = document.createElement("meter");
  const share = document.createElement("span");
  name.textContent = guess.class;
  meter.value = guess.confidence;
  share.textContent = `${(100 * guess.confidence).toFixed(1)}%`;
  meter.setAttribute("aria-label", `${guess.class}: ${share.textContent}`);
  item.append(name, meter, share);
  return item;
}

function open(file) {
  if (!file) return;
  clear();
  const picture = new Image();
  picture.onload = () => {
    const scale = Math.min(paper.width / picture.width, paper.height / picture.height);
    const width = picture.width * scale;
    const height = picture.height * scale;
    pen.drawImage(picture, (paper.width - width) / 2, (paper.height - height) / 2, width, height);
    URL.revokeObjectURL(picture.src);
  };
  picture.onerror = () => URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  send(file); // the file itself, in its own size; the paper only shows it
}

paper.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  paper.setPointerCapture(event.pointerId);
  last = place(event);
  line(last, last);
  later();
});
paper.addEventListener("pointermove", (event) => {
  if (last === null) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) {
    const here = place(each);
    line(last, here);
    last = here;
  }
  later();
});
for (const name of ["pointerup", "pointercancel"]) {
  paper.addEventListener(name, () => { last = null; });
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
paper.addEventListener("keydown", (event) => {
  if (event.key === " ") {
    cursor.down = !cursor.down;
    if (cursor.down) { line(cursor, cursor); later(); }
    message.textContent = cursor.down ? "The pen is down." : "The pen is up.";
  } else if (event.key in MOVES) {
    const [x, y] = MOVES[event.key];
    const to = {
      x: Math.min(Math.max(cursor.x + x * STEP, 0), paper.width),
      y: Math.min(Math.max(cursor.y + y * STEP, 0), paper.height),
    };
    if (cursor.down) { line(cursor, to); later(); }
    Object.assign(cursor, to);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
});

document.getElementById("clear").addEventListener("click", clear);
document.getElementById("file").addEventListener("change", (event) => {
  open(event.target.files[0]);
  event.target.value = "";
});
const sheet = document.getElementById("sheet");
for (const name of ["dragover", "dragenter"]) {
  sheet.addEventListener(name, (event) => { event.preventDefault(); sheet.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  sheet.addEventListener(name, () => sheet.classList.remove("over"));
}
sheet.addEventListener("drop", (event) => { event.preventDefault(); open(event.dataTransfer.files[0]); });
document.addEventListener("paste", (event) => open(event.clipboardData.files[0]));

clear();
