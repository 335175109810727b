package oracle

import (
	"bytes"
	"fmt"

	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
)

// YAML is the world as documents, for people to read and for the testdata of recipes.
func (w World) YAML() string {
	var b bytes.Buffer
	doc := func(v any) {
		text, err := yaml.Marshal(v)
		if err != nil {
			text = []byte("# " + err.Error() + "\n")
		}
		fmt.Fprintf(&b, "---\n%s", text)
	}
	for _, o := range w.Objects {
		text, err := api.Encode(o)
		if err == nil {
			text, err = yaml.JSONToYAML(text)
		}
		if err != nil {
			text = []byte("# " + err.Error() + "\n")
		}
		fmt.Fprintf(&b, "---\n%s", text)
	}
	for _, k := range w.Kubernetes {
		doc(k)
	}
	for _, k := range w.Cluster {
		doc(k)
	}
	for _, k := range w.Admin {
		doc(k)
	}
	for _, k := range w.Baseline {
		doc(k)
	}
	if len(w.Services) > 0 {
		doc(map[string][]Service{"services": w.Services})
	}
	return b.String()
}
