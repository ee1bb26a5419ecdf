package wire

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func decode(t testing.TB, block []byte) (lines []string) {
	t.Helper()
	fields, err := hpack.NewDecoder(0, nil).DecodeFull(block)
	if err != nil {
		t.Fatalf("%q: %v", block, err)
	}
	for _, f := range fields {
		line := f.Name + "=" + f.Value
		if f.Sensitive {
			line += " never indexed"
		}
		lines = append(lines, line)
	}
	return lines
}

// TestStaticTable: each name of the table is found, and is what x/net has there.
func TestStaticTable(t *testing.T) {
	for i := 15; i <= 61; i++ {
		fields, err := hpack.NewDecoder(0, nil).DecodeFull([]byte{0x80 | byte(i)})
		if err != nil {
			t.Fatal(err)
		}
		if got := staticIndex([]byte(fields[0].Name)); got != byte(i) {
			t.Errorf("%s is entry %d, not %d", fields[0].Name, i, got)
		}
	}
	for _, name := range []string{"", "x", "x-forwarded-for", strings.Repeat("a", 27), strings.Repeat("a", 28), "datf"} {
		if i := staticIndex([]byte(name)); i != 0 {
			t.Errorf("%q is entry %d", name, i)
		}
	}
}

// TestFields: what is appended, x/net reads, and secrets are kept out of everybody's tables.
func TestFields(t *testing.T) {
	long := strings.Repeat("n", 300)
	for name, want := range map[string]string{"Content-Type": "content-type=v", "X-New": "x-new=v", "AUTHORIZATION": "authorization=v never indexed", "cookie": "cookie=v never indexed",
		"set-cookie": "set-cookie=v never indexed", "proxy-authorization": "proxy-authorization=v never indexed", long: long + "=v"} {
		if got := decode(t, AppendField(nil, name, "v")); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	for code := 100; code < 600; code++ {
		if got := decode(t, AppendStatus(nil, code)); got[0] != fmt.Sprintf(":status=%d", code) {
			t.Errorf("%d: %q", code, got)
		}
	}
	var b []byte
	for _, a := range []Ask{{Method: []byte("GET"), Authority: []byte("h"), Path: []byte("/")}, {Method: []byte("POST"), Authority: []byte("h:80"), Path: []byte("/a"), Secure: true},
		{Method: []byte("PUT"), Authority: []byte("h"), Path: []byte("*")}, {Method: []byte("CONNECT"), Authority: []byte("h:80"), Secure: true},
		{Method: []byte("GET"), Authority: []byte("h"), Path: []byte("/chat"), WebSocket: true}} {
		b = AppendAsk(b, a)
	}
	want := ":method=GET :scheme=http :authority=h :path=/ :method=POST :scheme=https :authority=h:80 :path=/a :method=PUT :scheme=http :authority=h :path=* " +
		":method=CONNECT :authority=h:80 :method=CONNECT :protocol=websocket :scheme=http :authority=h :path=/chat content-length=12345678901"
	if got := strings.Join(decode(t, AppendNumber(b, ContentLength, 12345678901)), " "); got != want {
		t.Errorf("%q", got)
	}
}
