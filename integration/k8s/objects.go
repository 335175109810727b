package k8s

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// Create creates an object: path is that of its list, such as /api/v1/namespaces/default/services, and the object anything
// that becomes its JSON.
func (s *Server) Create(ctx context.Context, path string, object any) error {
	return s.do(ctx, http.MethodPost, path, "application/json", object)
}

// Patch merges fields into an object, or into a part of it such as …/services/web/status.
func (s *Server) Patch(ctx context.Context, path string, fields any) error {
	return s.do(ctx, http.MethodPatch, path, "application/merge-patch+json", fields)
}

// Delete deletes an object.
func (s *Server) Delete(ctx context.Context, path string) error {
	return s.do(ctx, http.MethodDelete, path, "application/json", nil)
}

// AllowTypha gives typha's user the roles that docs/bgp.md shows. It is called from a folder two below the project's.
func (s *Server) AllowTypha(ctx context.Context) error {
	page, err := os.ReadFile("../../docs/bgp.md")
	if err != nil {
		return err
	}
	_, roles, ok := strings.Cut(string(page), "<!-- example: typha-roles.yaml -->\n```yaml\n")
	if !ok {
		return errors.New("docs/bgp.md has no example typha-roles.yaml")
	}
	roles, _, _ = strings.Cut(roles, "\n```")
	for document := range strings.SplitSeq(roles, "\n---\n") {
		var o struct {
			APIVersion, Kind string
			Metadata         struct{ Namespace string }
		}
		var body map[string]any
		if err := errors.Join(yaml.Unmarshal([]byte(document), &o), yaml.Unmarshal([]byte(document), &body)); err != nil {
			return err
		}
		path := "/apis/" + o.APIVersion
		if o.Metadata.Namespace != "" {
			path += "/namespaces/" + o.Metadata.Namespace
		}
		if err := s.Create(ctx, path+"/"+strings.ToLower(o.Kind)+"s", body); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) do(ctx context.Context, method, path, contentType string, body any) (err error) {
	client, err := rest.HTTPClientFor(s.Config(Admin))
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	var document []byte
	if body != nil {
		if document, err = json.Marshal(body); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, s.URL()+path, bytes.NewReader(document))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", contentType)
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, answer.Body.Close()) }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	}
	return nil
}
