package wire

import (
	"fmt"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// ResetError is what the peer's RST_STREAM means to us, as a client or not.
func ResetError(client bool, code http2.ErrCode) error {
	class := reset(code)
	if client {
		class = resetClass(code)
	}
	return fmt.Errorf("%w: by the peer: %v", class, code)
}

// reset tells a peer that gave a stream up from one of its ends.
func reset(code http2.ErrCode) error {
	if code == http2.ErrCodeCancel {
		return hbone.ErrCancelled
	}
	return hbone.ErrReset
}

// resetClass is what a server's RST_STREAM means to the client.
func resetClass(code http2.ErrCode) error {
	switch code {
	case http2.ErrCodeRefusedStream, http2.ErrCodeEnhanceYourCalm:
		return hbone.ErrLimit
	case http2.ErrCodeProtocol, http2.ErrCodeFlowControl, http2.ErrCodeStreamClosed, http2.ErrCodeFrameSize, http2.ErrCodeCompression:
		return hbone.ErrProtocol
	default:
		return reset(code)
	}
}
