package wire

import (
	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
)

// ResetClass is what a server's RST_STREAM means to the client.
func ResetClass(code http2.ErrCode) error {
	switch code {
	case http2.ErrCodeRefusedStream, http2.ErrCodeEnhanceYourCalm:
		return hbone.ErrLimit
	case http2.ErrCodeProtocol, http2.ErrCodeFlowControl, http2.ErrCodeStreamClosed, http2.ErrCodeFrameSize, http2.ErrCodeCompression:
		return hbone.ErrProtocol
	default:
		return hbone.ErrReset
	}
}
