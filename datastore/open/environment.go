package open

import (
	"errors"
	"reflect"
	"strconv"
)

// variables returns, for each field with an env name, the function that sets it from the variable's text.
func (c *Config) variables() map[string]func(string) error {
	setters := map[string]func(string) error{}
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		name, ok := v.Type().Field(i).Tag.Lookup("env")
		if !ok {
			continue
		}
		field := v.Field(i)
		setters[name] = func(text string) error { return setField(field, text) }
	}
	return setters
}

func setField(field reflect.Value, text string) error {
	switch field.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return errors.New("is neither true nor false")
		}
		field.SetBool(b)
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return errors.New("is not a whole number")
		}
		field.SetInt(int64(n))
	case reflect.Float32:
		f, err := strconv.ParseFloat(text, 32)
		if err != nil {
			return errors.New("is not a number")
		}
		field.SetFloat(f)
	default:
		field.SetString(text)
	}
	return nil
}
