package sample_test

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/flow/sample"
	"github.com/heddle-mesh/heddle/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestFirstRuleThatFits(t *testing.T) {
	rules, err := sample.Parse([]string{"/healthz=0", "/v1/*=1", "shop/cart=0.25", "shop/*=0.1", "*=0.01"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		service, path string
		want          int // of 1000
	}{
		{"shop/cart:80", "/healthz", 0}, {"shop/cart:80", "/v1/x", 1000}, {"shop/cart:80", "/v1", 250}, {"shop/cart:8080", "/healthz/x", 250},
		{"shop/pay:80", "/", 100}, {"other/pay:80", "/", 10}, {"", "", 10},
	} {
		n := 0
		for range 1000 {
			if rules.Want(c.service, c.path) {
				n++
			}
		}
		if n < c.want-1 || n > c.want+1 {
			t.Errorf("%s%s: %d of 1000, want %d", c.service, c.path, n, c.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { rules.Want("other/pay:80", "/") }); n > 0 {
		t.Errorf("asking allocates %v times", n)
	}
}

func TestNoRules(t *testing.T) {
	var none *sample.Rules
	empty, err := sample.Parse(nil)
	if err != nil || none.Want("a/b", "/") || empty.Want("a/b", "/") {
		t.Errorf("who wants nothing gets something: %v", err)
	}
	all, err := sample.Parse([]string{"1"})
	if err != nil || !all.Want("a/b:1", "/") {
		t.Errorf("a share alone: %v", err)
	}
}

func TestRefused(t *testing.T) {
	for _, text := range []string{"", "x", "2", "-0.1", "NaN", "shop/cart=", "=1", "a*b=1", "shop/cart=1.5"} {
		if _, err := sample.Parse([]string{text}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := sample.Parse(make([]string, 0)); err != nil {
		t.Error(err)
	}
	if _, err := sample.Parse(strings.Split(strings.Repeat("a=1,", sample.MaxRules)+"b=1", ",")); err == nil {
		t.Error("as many rules as one likes")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("shop/*=0.5,/x=1", "shop/a:80", "/x")
	f.Fuzz(func(t *testing.T, text, service, path string) {
		rules, err := sample.Parse(strings.Split(text, ","))
		if err == nil {
			rules.Want(service, path)
		}
	})
}
