package grammar

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
)

// WebSocketAnswer is the Sec-WebSocket-Accept to a key (RFC 6455 section 4.2.2).
func WebSocketAnswer(key []byte) string {
	sum := sha1.Sum(append(key[:len(key):len(key)], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// WebSocketKey is a new Sec-WebSocket-Key: 16 random bytes (section 4.1).
func WebSocketKey() []byte {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // it never fails
	return base64.StdEncoding.AppendEncode(nil, nonce[:])
}
