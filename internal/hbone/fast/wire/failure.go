package wire

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/hbone"
	"github.com/heddle-mesh/heddle/internal/hbone/flood"
	"github.com/heddle-mesh/heddle/internal/hbone/h2"
	"github.com/heddle-mesh/heddle/internal/hbone/tlsrecord"
)

var (
	// ErrUnfinished is a frame, header or record whose end has not come in time.
	ErrUnfinished = fmt.Errorf("%w: something was begun and not ended", hbone.ErrTimeout)
	// ErrPieces is a frame or header that comes in pieces when its pod's budget of
	// memory is used up.
	ErrPieces = fmt.Errorf("%w: the pod holds as much as it may, and a frame comes in pieces", hbone.ErrLimit)
)

// IdleStream is what a frame on a stream that was never opened breaks.
func IdleStream() error {
	return &h2.Error{Code: http2.ErrCodeProtocol, Reason: "frame on an idle stream"}
}

// Overflow is what more DATA than the windows allow breaks.
func Overflow() error {
	return &h2.Error{Code: http2.ErrCodeFlowControl, Reason: "more than the connection's window"}
}

// Failure is what a failed read makes of a connection.
type Failure struct {
	Err error
	// Code and Alert are the goodbye.
	Code  http2.ErrCode
	Alert tlsrecord.Alert
	// Broke says that the peer broke a rule, Lost that it has said goodbye itself.
	Broke, Lost bool
}

// Judge tells the errors of Input.Next and of h2.Parser.Feed apart, and ours.
func Judge(err error) Failure {
	var (
		frame   *h2.Error
		record  *tlsrecord.RecordError
		tooMuch *flood.Error
		alert   tlsrecord.Alert
	)
	switch {
	case errors.As(err, &frame):
		return Failure{fmt.Errorf("%w: %w", hbone.ErrProtocol, err), frame.Code, tlsrecord.CloseNotify, true, false}
	case errors.Is(err, ErrUnfinished), errors.Is(err, ErrPieces):
		return Failure{err, http2.ErrCodeEnhanceYourCalm, tlsrecord.CloseNotify, true, false}
	case errors.As(err, &tooMuch):
		return Failure{fmt.Errorf("%w: %w", hbone.ErrLimit, err), http2.ErrCodeEnhanceYourCalm, tlsrecord.CloseNotify, true, false}
	case errors.As(err, &record):
		return Failure{fmt.Errorf("%w: %w", hbone.ErrProtocol, err), http2.ErrCodeProtocol, record.Alert, true, false}
	case errors.As(err, &alert):
		return Failure{Err: fmt.Errorf("%w: connection lost: peer sent %w", hbone.ErrProtocol, err), Lost: true}
	}
	return Failure{Err: fmt.Errorf("%w: connection lost: %w", hbone.ErrProtocol, err), Code: http2.ErrCodeNo, Alert: tlsrecord.CloseNotify}
}

// Status is the status of an answer, 0 of a malformed one.
func Status(h h2.Header) int {
	if len(h.Fields) == 0 || h.Fields[0].Name != ":status" || h.TooLong {
		return 0
	}
	code, _ := strconv.Atoi(h.Fields[0].Value) // 0 is malformed too
	return code
}
