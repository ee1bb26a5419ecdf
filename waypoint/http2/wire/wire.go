// Package wire writes the bytes of HTTP/2 (RFC 9113): frames' headers, frames that are of one
// form, and compressed fields. It knows no streams and judges nothing.
package wire

import "encoding/binary"

const (
	HeaderBytes = 9
	// MaxFrame is the longest payload that we take and send: the least that a peer must take
	// (RFC 9113 section 4.2), and what we announce by saying nothing.
	MaxFrame = 1 << 14
)

// The kinds of frames (section 6), and their flags.
const (
	Data = iota
	Headers
	Priority
	Reset
	Settings
	Push
	Ping
	GoAway
	Update
	Continuation

	Ack         = 0x1
	EndStream   = 0x1
	EndHeaders  = 0x4
	Padded      = 0x8
	HasPriority = 0x20
)

// The settings that we send, obey or check (section 6.5.2; RFC 8441; RFC 9218), and how long frames are.
const (
	SettingTable      = 1
	SettingPush       = 2
	SettingStreams    = 3
	SettingWindow     = 4
	SettingFrame      = 5
	SettingHeadBytes  = 6
	SettingConnect    = 8
	SettingNoPriority = 9

	SettingBytes  = 6
	ResetBytes    = 4
	UpdateBytes   = 4
	PingBytes     = 8
	GoAwayBytes   = 8
	PriorityBytes = 5

	ReservedBit = 1 << 31
)

// AppendFrame appends a frame's header.
func AppendFrame(b []byte, kind, flags byte, id uint32, length int) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	return binary.BigEndian.AppendUint32(b, id)
}

func AppendReset(b []byte, id uint32, code uint32) []byte {
	return binary.BigEndian.AppendUint32(AppendFrame(b, Reset, 0, id, ResetBytes), code)
}

func AppendUpdate(b []byte, id uint32, n int64) []byte {
	return binary.BigEndian.AppendUint32(AppendFrame(b, Update, 0, id, UpdateBytes), uint32(n))
}

func AppendGoAway(b []byte, last uint32, code uint32) []byte {
	b = binary.BigEndian.AppendUint32(AppendFrame(b, GoAway, 0, 0, GoAwayBytes), last)
	return binary.BigEndian.AppendUint32(b, code)
}

// Setting is a parameter of SETTINGS.
type Setting struct {
	ID    uint16
	Value uint32
}

func AppendSettings(b []byte, list ...Setting) []byte {
	b = AppendFrame(b, Settings, 0, 0, SettingBytes*len(list))
	for _, s := range list {
		b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, s.ID), s.Value)
	}
	return b
}
