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
