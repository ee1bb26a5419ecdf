package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
)

// sockets serves WebSockets over HTTP/2 (RFC 8441).
func sockets(address string) error {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return (&http.Server{Addr: address, Protocols: p, Handler: http.HandlerFunc(sayBack)}).ListenAndServe()
}

// sayBack answers an extended CONNECT, and sends each frame back without its mask. It ends behind a close frame.
func sayBack(out http.ResponseWriter, r *http.Request) {
	if r.Method != "CONNECT" || r.Header.Get(":protocol") != "websocket" || r.Header.Get("Sec-Websocket-Version") != "13" || r.Header.Get("Sec-Websocket-Key") != "" {
		http.Error(out, "no WebSocket", 400)
		return
	}
	out.Header().Set("Sec-Websocket-Protocol", r.Header.Get("Sec-Websocket-Protocol"))
	out.Header().Set("X-Asked", r.Host+r.URL.RequestURI())
	out.Header().Set("X-For", r.Header.Get("X-Forwarded-For"))
	out.WriteHeader(200)
	control := http.NewResponseController(out)
	in := bufio.NewReader(r.Body)
	for err := control.Flush(); err == nil; {
		var op byte
		if op, err = echoFrame(out, in); op == 8 {
			return
		}
		err = errors.Join(err, control.Flush())
	}
}

// echoFrame reads a client's frame (RFC 6455 section 5.2), writes it as a server's, and returns its opcode.
func echoFrame(out io.Writer, in *bufio.Reader) (op byte, err error) {
	head := make([]byte, 2, 10)
	if _, err := io.ReadFull(in, head); err != nil {
		return 0, err
	}
	n := uint64(head[1] & 0x7f)
	more := map[uint64]int{126: 2, 127: 8}[n]
	if _, err := io.ReadFull(in, head[2:2+more]); err != nil {
		return 0, err
	}
	head = head[:2+more]
	switch more {
	case 2:
		n = uint64(binary.BigEndian.Uint16(head[2:]))
	case 8:
		n = binary.BigEndian.Uint64(head[2:])
	}
	if head[1]&0x80 == 0 || n > 1<<24 {
		return 0, errors.New("a frame without a mask, or too long")
	}
	var mask [4]byte
	data := make([]byte, n)
	if _, err := io.ReadFull(in, mask[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(in, data); err != nil {
		return 0, err
	}
	for i := range data {
		data[i] ^= mask[i%4]
	}
	head[1] &= 0x7f
	_, err = out.Write(append(head, data...))
	return head[0] & 0x0f, err
}
