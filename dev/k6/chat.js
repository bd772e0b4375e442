// The load of `loadtest run chat` without losses of connection, by k6: each user writes to the next one at intended times.
// Given in the environment: SERVER (ws://host:port), TOKENS (a JSON file: one token per user), USERS, RATE (submits per second over
// all), SECONDS, PAYLOAD (bytes). The clock of k6 has milliseconds.
import { WebSocket } from 'k6/experimental/websockets';
import { Counter, Trend } from 'k6/metrics';
import { decode, encode } from '../../protocol/interop/browser/chappe.js';

// What the module needs of a browser and k6 does not have; names, tokens and codes are ASCII.
globalThis.TextEncoder = class {
  encode(text) {
    const bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
    return bytes;
  }
};
globalThis.TextDecoder = class {
  decode(bytes) {
    return bytes.reduce((text, byte) => text + String.fromCharCode(byte), '');
  }
};

const env = (name) => Number(__ENV[name]);
const tokens = JSON.parse(open(__ENV.TOKENS));
const users = env('USERS'), every = (1000 * env('USERS')) / env('RATE'), lasts = 1000 * env('SECONDS');
const accept = new Trend('accept_ms'), deliver = new Trend('deliver_ms'), late = new Trend('late_ms');
const accepted = new Counter('accepted'), delivered = new Counter('delivered'), refused = new Counter('refused');

export const options = {
  scenarios: { chat: { executor: 'per-vu-iterations', vus: users, iterations: 1, maxDuration: '10m' } },
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'max', 'avg', 'count'],
};

// All begin when all are connected.
export function setup() {
  return { start: Date.now() + 5000 };
}

export default function ({ start }) {
  const user = __VU - 1;
  const socket = new WebSocket(`${__ENV.SERVER}/v1/connect`, 'chappe.v1');
  socket.binaryType = 'arraybuffer';
  const send = (frame) => socket.send(encode('ClientFrame', frame).buffer);
  const intended = {}; // by submit id
  let number = 0, upto = 0, acked = 0;
  const on = {
    welcome({ from }) {
      upto = from;
      acked = from;
      const first = start + (every * user) / users;
      const ticker = setInterval(() => {
        const now = Date.now();
        for (let due; (due = first + number * every) <= now && due < start + lasts; number += 1) submit(due, now);
        if (upto > acked) send({ ack: { upto } });
        acked = upto;
        if (now > start + lasts + 3000) {
          clearInterval(ticker);
          socket.close();
        }
      }, 1);
    },
    deliver({ seq, payload }) {
      upto = seq;
      delivered.add(1);
      deliver.add(Date.now() - Number(String.fromCharCode(...payload.subarray(0, 16))));
    },
    submit_result({ submit_id, results }) {
      const key = String(submit_id);
      (results[0].outcome === 1 ? accepted : refused).add(1);
      accept.add(Date.now() - intended[key]);
      delete intended[key];
    },
  };
  function submit(due, now) {
    late.add(now - due);
    const submit_id = crypto.getRandomValues(new Uint8Array(16));
    const payload = new Uint8Array(env('PAYLOAD'));
    payload.set(new TextEncoder().encode(String(due.toFixed(2)).padEnd(16).slice(0, 16)));
    intended[String(submit_id)] = due;
    const target = { number: 0, user: `k6-${(user + 1) % users}`, payload: 0 };
    send({ submit: { submit_id, attempt: 1, payloads: [payload], targets: [target] } });
  }
  socket.onopen = () => send({ hello: { token: tokens[user], device: 'k6', role: 1 } });
  socket.onmessage = ({ data }) => {
    const frame = decode('ServerFrame', new Uint8Array(data));
    const [kind] = Object.keys(frame);
    if (on[kind]) on[kind](frame[kind]);
  };
  socket.onerror = (error) => console.error(`user ${user}: ${error.error}`);
}
