package health

import (
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	for name, c := range map[string]struct {
		of   []string
		ok   bool
		says string
	}{
		"all the same":           {[]string{"v1.2.0", "v1.2.0"}, true, "all are v1.2.0"},
		"one release":            {[]string{"v1.2.9", "v1.3.0"}, true, "an upgrade is on its way: v1.2.9 (p0), v1.3.0 (p1)"},
		"within a release":       {[]string{"1.2.0-4-gabcdef", "1.2.7"}, true, "an upgrade is on its way"},
		"two releases":           {[]string{"v1.10.0", "v1.8.3"}, false, "further apart than one release: v1.8.3 (p1), v1.10.0 (p0)"},
		"another major one":      {[]string{"v1.2.0", "v2.2.0"}, false, "further apart"},
		"the next major one":     {[]string{"v1.9.3", "v2.0.0", "v1.9.1"}, true, "an upgrade is on its way"},
		"not its first":          {[]string{"v1.9.3", "v2.1.0"}, false, "further apart"},
		"over a major one":       {[]string{"v1.9.3", "v3.0.0"}, false, "further apart"},
		"a release between them": {[]string{"v1.8.0", "v1.9.3", "v2.0.0"}, false, "further apart"},
		"three, of which two do": {[]string{"v1.1.0", "v1.2.0", "v1.3.0"}, false, "further apart"},
		"builds":                 {[]string{"dev", "f718ebd"}, true, "an upgrade is on its way: dev (p0), f718ebd (p1)"},
		"a build and a release":  {[]string{"dev", "v1.2.0"}, true, "an upgrade is on its way"},
		"a number of no end":     {[]string{"v99999999999999999999999.1.0", "v1.1.0"}, true, "an upgrade is on its way"},
	} {
		r, v := New(), Versions{}
		for i, version := range c.of {
			v.Add(version, "p"+string(rune('0'+i)))
		}
		r.Versions(v)
		if len(r.Findings) != 1 || r.OK != c.ok || !strings.Contains(r.Findings[0].Detail, c.says) || !c.ok && r.Findings[0].Remedy == "" {
			t.Errorf("%s: %+v", name, r.Findings)
		}
	}
	r, v := New(), Versions{}
	v.Add("", "who does not answer")
	if r.Versions(v); len(r.Findings) != 0 {
		t.Errorf("of nobody it says %+v", r.Findings)
	}
	for _, who := range []string{"n4", "n2", "n3", "n1", "n5"} {
		v.Add("v1.0.0", who)
	}
	if got := v.String(); got != "v1.0.0 (n1, n2, n3, and 2 more)" {
		t.Errorf("of many it says %s", got)
	}
}
