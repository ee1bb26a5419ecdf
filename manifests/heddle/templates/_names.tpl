{{- define "heddle.labels" -}}
app.kubernetes.io/name: heddle
app.kubernetes.io/part-of: heddle
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* Labels that selectors use: they never change. */ -}}
{{- define "heddle.selector" -}}
app.kubernetes.io/part-of: heddle
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "heddle.image" -}}
{{- $digest := index .root.Values.image.digests .program -}}
{{- if $digest -}}
{{ .root.Values.image.registry }}/heddle-{{ .program }}@{{ $digest }}
{{- else -}}
{{ .root.Values.image.registry }}/heddle-{{ .program }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* What the whole cluster has of the operator. It has the namespace in its name, so that
       what is applied for another one takes nothing from this one. */ -}}
{{- define "heddle.clusterName" -}}
heddle-operator{{ if ne .Release.Namespace "heddle-system" }}-{{ .Release.Namespace }}{{ end }}
{{- end }}

{{/* A duration, such as 1m30s, in whole seconds. */}}
{{- define "heddle.seconds" -}}
{{- $total := 0.0 -}}
{{- range regexFindAll "[0-9.]+(ms|s|m|h)" . -1 -}}
{{- $unit := get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) (regexFind "[a-z]+" .) -}}
{{- $total = addf $total (mulf (regexFind "[0-9.]+" . | float64) $unit) -}}
{{- end -}}
{{- ceil $total | int64 -}}
{{- end -}}
