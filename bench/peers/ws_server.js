// Node's `ws`: `node ws_server.js PORT`. A broadcast is one frame, made once, given to each socket's
// own sender, as `ws` itself would give it a frame that it had just made.
"use strict";
const http = require("http");
const { WebSocketServer, Sender } = require("ws");

const server = http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const options = { fin: true, rsv1: false, opcode: 1, mask: false, readOnly: true };
    const frame = Buffer.concat(Sender.frame(Buffer.concat(parts), options));
    for (const client of sockets.clients) client._sender.sendFrame([frame]);
    response.end(JSON.stringify({ sockets: sockets.clients.size, dropped: 0 }));
  });
});

const sockets = new WebSocketServer({ server, path: "/ws", perMessageDeflate: false });
sockets.on("connection", (socket) => {
  socket.on("message", (data) => socket.send(data, { binary: false }));
  socket.on("error", () => socket.terminate());
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
