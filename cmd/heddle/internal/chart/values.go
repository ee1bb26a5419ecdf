package chart

import (
	"fmt"
	"os"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/strvals"
)

// Values merges files of YAML, and then settings such as image.tag=v1, as
// `helm --values` and `--set` do: what comes later wins.
func Values(files, settings []string) (map[string]any, error) {
	values := map[string]any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%w: --values: %w", ErrValues, err)
		}
		more, err := chartutil.ReadValues(text)
		if err != nil {
			return nil, fmt.Errorf("%w: --values %s: %w", ErrValues, file, err)
		}
		values = chartutil.CoalesceTables(more, values)
	}
	for _, setting := range settings {
		if err := strvals.ParseInto(setting, values); err != nil {
			return nil, fmt.Errorf("%w: --set %s: %w; remedy: write NAME=VALUE, as in image.tag=v1", ErrValues, setting, err)
		}
	}
	return values, nil
}

// Unset reports whether no value is given at a path of keys.
func Unset(values map[string]any, keys ...string) bool {
	_, err := chartutil.Values(values).PathValue(join(keys))
	if err != nil {
		_, err = chartutil.Values(values).Table(join(keys))
	}
	return err != nil
}

// Set gives a value at a path of keys, over what was there.
func Set(values map[string]any, value any, keys ...string) {
	for _, key := range keys[:len(keys)-1] {
		next, ok := values[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			values[key] = next
		}
		values = next
	}
	values[keys[len(keys)-1]] = value
}

func join(keys []string) string {
	path := keys[0]
	for _, key := range keys[1:] {
		path += "." + key
	}
	return path
}

// Merge returns the values of both; those of the first win. Neither is changed.
func Merge(values, under map[string]any) map[string]any {
	return chartutil.MergeTables(copied(values), copied(under))
}

func copied(values map[string]any) map[string]any {
	out := make(map[string]any, len(values))
	for key, value := range values {
		if table, ok := value.(map[string]any); ok {
			value = copied(table)
		}
		out[key] = value
	}
	return out
}

// Wanted reports whether a switch is on, or not given, which is on.
func Wanted(values map[string]any, keys ...string) bool {
	value, err := chartutil.Values(values).PathValue(join(keys))
	on, ok := value.(bool)
	return err != nil || !ok || on
}
