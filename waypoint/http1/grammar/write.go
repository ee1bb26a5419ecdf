package grammar

import "strconv"

// AppendField appends a field's line (RFC 9112 section 5). Nothing is checked.
func AppendField(b, name, value []byte) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// AppendChunk appends a chunk (RFC 9112 section 7.1). One without data would be the last one.
func AppendChunk(b, data []byte) []byte {
	b = strconv.AppendUint(b, uint64(len(data)), 16)
	b = append(b, "\r\n"...)
	b = append(b, data...)
	return append(b, "\r\n"...)
}
