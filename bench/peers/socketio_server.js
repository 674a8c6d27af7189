// Socket.IO over its websocket transport: `node socketio_server.js PORT`. A broadcast is one event
// to everybody; its adapter encodes it once.
"use strict";
const http = require("http");
const { Server } = require("socket.io");

const server = http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    io.emit("offer", JSON.parse(Buffer.concat(parts)));
    response.end(JSON.stringify({ sockets: io.engine.clientsCount, dropped: 0 }));
  });
});

const io = new Server(server, { transports: ["websocket"], perMessageDeflate: false });
io.on("connection", (socket) => socket.on("echo", (text) => socket.emit("echo", text)));
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
