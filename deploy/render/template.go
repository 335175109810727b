package render

import (
	"bytes"
	"fmt"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/deploy"
)

// Manifests are the manifests of an installation, one file for each template of the chart that is not empty with these values.
func Manifests(v Values) ([]deploy.File, error) {
	values, err := toMap(v)
	if err != nil {
		return nil, err
	}
	var out []deploy.File
	for _, t := range deploy.Templates() {
		text, err := execute(t, values)
		if err != nil {
			return nil, fmt.Errorf("template %s: %w", t.Name, err)
		}
		if len(bytes.TrimSpace(text)) > 0 {
			out = append(out, deploy.File{Name: t.Name, Text: text})
		}
	}
	return out, nil
}

func execute(file deploy.File, values map[string]any) ([]byte, error) {
	t, err := template.New(file.Name).Option("missingkey=error").Funcs(functions()).Parse(string(file.Text))
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	err = t.Execute(&text, map[string]any{"Values": values})
	return text.Bytes(), err
}

// functions are those of helm's that the chart uses; nothing else may be used in it.
func functions() template.FuncMap {
	return template.FuncMap{
		"quote": func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
		"indent": func(n int, text string) string {
			space := strings.Repeat(" ", n)
			return space + strings.ReplaceAll(text, "\n", "\n"+space)
		},
		"toYaml": func(v any) (string, error) {
			text, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(text), "\n"), err
		},
	}
}

// Join makes one YAML stream of files.
func Join(files ...deploy.File) []byte {
	var out bytes.Buffer
	for i, f := range files {
		text := f.Text
		if !bytes.HasPrefix(text, []byte("---\n")) && i > 0 {
			out.WriteString("---\n")
		}
		out.Write(bytes.TrimRight(text, "\n"))
		out.WriteString("\n")
	}
	return out.Bytes()
}
