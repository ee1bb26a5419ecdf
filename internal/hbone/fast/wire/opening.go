package wire

import (
	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone/h2"
)

// DrainPing marks the PING of a drain, PathPing the one that measures; the others
// carry zeros.
func DrainPing() [8]byte { return [8]byte{'d', 'r', 'a', 'i', 'n'} }

// PathPing is described there.
func PathPing() [8]byte { return [8]byte{'p', 'a', 't', 'h'} }

// Opening is how a connection begins HTTP/2: the preface of a client, and
// SETTINGS. Streams is how many the peer of a server may open at once, window
// the initial one of its streams in bytes, headerBytes the bound of a header.
func Opening(client bool, streams, headerBytes int, window int64) []byte {
	var b []byte
	role := http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(streams)}
	if client {
		b, role = []byte(http2.ClientPreface), http2.Setting{ID: http2.SettingEnablePush}
	}
	return h2.AppendSettings(b, http2.Setting{ID: http2.SettingHeaderTableSize}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: h2.MaxFrame}, role,
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(window)}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(headerBytes)})
}
