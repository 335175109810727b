package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
)

// withoutCRD are the kinds that Kubernetes keeps in objects of its own.
var withoutCRD = []string{"Node", "WorkloadEndpoint", "Profile", "LiveMigration"}

// crd is one of the generated CRDs, ready to judge objects as an API server does.
type crd struct {
	definition *apiextensionsv1.CustomResourceDefinition
	structural *structuralschema.Structural
	schema     validation.SchemaValidator
	rules      *cel.Validator
}

// crds caches them: to compile the rules of one takes a while.
var crds sync.Map

func readCRD(t *testing.T, kind api.Kind) *crd {
	t.Helper()
	read, _ := crds.LoadOrStore(kind.Name, sync.OnceValue(func() *crd { return loadCRD(t, kind) }))
	return read.(func() *crd)()
}

func loadCRD(t *testing.T, kind api.Kind) *crd {
	t.Helper()
	file := filepath.Join("..", "deploy", "chart", "crds", "projectcalico.org_"+kind.Plural+".yaml")
	text, err := os.ReadFile(file)
	require.NoError(t, err, "generate the CRDs (make gen)")
	c := &crd{definition: &apiextensionsv1.CustomResourceDefinition{}}
	require.NoError(t, yaml.UnmarshalStrict(text, c.definition))
	var props apiextensions.JSONSchemaProps
	require.NoError(t, apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(c.definition.Spec.Versions[0].Schema.OpenAPIV3Schema, &props, nil))
	c.structural, err = structuralschema.NewStructural(&props)
	require.NoError(t, err, "the schema is not structural")
	c.schema, _, err = validation.NewSchemaValidator(&props)
	require.NoError(t, err)
	c.rules = cel.NewValidator(c.structural, true, celconfig.PerCallLimit)
	return c
}

// judge is what an API server does with a write: prune, default, validate; old is nil for a create.
func (c *crd) judge(o, old map[string]any) field.ErrorList {
	pruning.Prune(o, c.structural, true)
	defaulting.Default(o, c.structural)
	errs := validation.ValidateCustomResource(nil, o, c.schema)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, c.structural, o)...)
	if len(errs) == 0 && c.rules != nil {
		var before any
		if old != nil {
			before = old
		}
		found, _ := c.rules.Validate(context.Background(), nil, c.structural, o, before, celconfig.RuntimeCELCostBudget)
		errs = append(errs, found...)
	}
	return errs
}

// asServer turns an object into what an API server works on.
func asServer(t *testing.T, o api.Object) map[string]any {
	t.Helper()
	text, err := api.Encode(o)
	require.NoError(t, err)
	return numbers(t, text)
}

// numbers decodes JSON with int64 and float64, as API servers do.
func numbers(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var m map[string]any
	dec := json.NewDecoder(strings.NewReader(string(text)))
	dec.UseNumber()
	require.NoError(t, dec.Decode(&m))
	return native(m).(map[string]any)
}

func native(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key := range v {
			v[key] = native(v[key])
		}
	case []any:
		for i := range v {
			v[i] = native(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return v
}

// TestCRDs has Kubernetes itself judge the generated definitions: structural, list types sound, defaults valid, every
// CEL rule compiling within its cost limit.
func TestCRDs(t *testing.T) {
	for _, kind := range api.Kinds() {
		if slices.Contains(withoutCRD, kind.Name) {
			require.NoFileExists(t, filepath.Join("..", "deploy", "chart", "crds", "projectcalico.org_"+kind.Plural+".yaml"))
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			c := readCRD(t, kind)
			apiextensionsv1.SetDefaults_CustomResourceDefinition(c.definition)
			apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&c.definition.Spec)
			var internal apiextensions.CustomResourceDefinition
			require.NoError(t, apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(c.definition, &internal, nil))
			internal.Status.StoredVersions = []string{"v3"}
			require.NoError(t, crdvalidation.ValidateCustomResourceDefinition(context.Background(), &internal).ToAggregate())

			spec := c.definition.Spec
			require.Equal(t, "projectcalico.org", spec.Group)
			require.Equal(t, "v3", spec.Versions[0].Name)
			require.Equal(t, kind.Name, spec.Names.Kind)
			require.Equal(t, kind.Plural, spec.Names.Plural)
			require.Equal(t, kind.Namespaced, spec.Scope == apiextensionsv1.NamespaceScoped)
		})
	}
}

// TestPrinterColumns: kubectl get shows more of each kind than its name, and what it shows there is: of a type that it can print.
func TestPrinterColumns(t *testing.T) {
	for _, kind := range api.Kinds() {
		if slices.Contains(withoutCRD, kind.Name) {
			continue
		}
		c := readCRD(t, kind)
		columns := c.definition.Spec.Versions[0].AdditionalPrinterColumns
		require.NotEmpty(t, columns, kind.Name)
		require.Equal(t, apiextensionsv1.CustomResourceColumnDefinition{Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp"}, columns[len(columns)-1], kind.Name)
		for _, column := range columns[:len(columns)-1] {
			at := c.structural
			for name := range strings.SplitSeq(strings.TrimPrefix(column.JSONPath, "."), ".") {
				if strings.HasPrefix(name, "type=='") { // the rest of a choice among conditions, which the next line has begun
					continue
				}
				name, _, chosen := strings.Cut(name, "[?(@")
				next, ok := at.Properties[name]
				require.True(t, ok, "%s, column %s: %s has no %s", kind.Name, column.Name, column.JSONPath, name)
				if at = &next; chosen {
					at = next.Items
					require.Contains(t, at.Properties, "type", "%s, column %s", kind.Name, column.Name)
				}
			}
			switch column.Type {
			case "string": // whatever is no map is printed
				require.NotEqual(t, "object", at.Type, "%s, column %s", kind.Name, column.Name)
			case "date":
				require.Equal(t, "date-time", at.ValueValidation.Format, "%s, column %s", kind.Name, column.Name)
			default:
				require.Equal(t, column.Type, at.Type, "%s, column %s", kind.Name, column.Name)
			}
		}
	}
}

// TestCRDFiles checks that no definition is left over from a kind that is gone.
func TestCRDFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "deploy", "chart", "crds", "*.yaml"))
	require.NoError(t, err)
	require.Len(t, files, len(api.Kinds())-len(withoutCRD), fmt.Sprint(files))
}

// TestClassicDefinitions checks that clusters whose data is in Calico's own group can be given every kind that they lack.
func TestClassicDefinitions(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "deploy", "classic", "crds.yaml"))
	require.NoError(t, err)
	var have, want []string
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var definition apiextensionsv1.CustomResourceDefinition
		require.NoError(t, yaml.UnmarshalStrict([]byte(doc), &definition))
		if definition.Name != "" {
			have = append(have, definition.Name)
		}
	}
	for _, kind := range api.Kinds() {
		plural := kind.Plural
		if kind.Name == "IPAMConfiguration" {
			plural = "ipamconfigs" // as it is called there
		}
		if !slices.Contains(withoutCRD, kind.Name) {
			want = append(want, plural+".crd.projectcalico.org")
		}
	}
	require.Equal(t, want, have)
}
