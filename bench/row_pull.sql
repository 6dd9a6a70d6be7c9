/*
 * bench/row_pull.sql: the pull as most people write it first: a loop with a
 * look-up and an insert or update for every row.
 */
CREATE FUNCTION row_pull(since timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	r record;
	k bigint;
	k1 bigint;
	k2 bigint;
	k3 bigint;
BEGIN
	-- uom_category
	FOR r IN SELECT * FROM hq.uom_category
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k FROM translation
		WHERE model = 1 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM uom_category WHERE code = r.code;
			IF k IS NULL THEN
				k := nextval('uom_category_id_seq');
				INSERT INTO translation VALUES (1, k, r.id);
				INSERT INTO uom_category (id, code, name, updated_at)
				VALUES (k, r.code, r.name, r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (1, k, r.id);
		END IF;
		UPDATE uom_category SET code = r.code, name = r.name,
			updated_at = r.updated_at
		WHERE id = k;
	END LOOP;

	-- uom
	FOR r IN SELECT * FROM hq.uom
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k1 FROM translation
		WHERE model = 1 AND remote_id = r.category_id;
		SELECT local_id INTO k FROM translation
		WHERE model = 2 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM uom WHERE code = r.code;
			IF k IS NULL THEN
				k := nextval('uom_id_seq');
				INSERT INTO translation VALUES (2, k, r.id);
				INSERT INTO uom (id, code, name, category_id, factor,
					updated_at)
				VALUES (k, r.code, r.name, k1, r.factor, r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (2, k, r.id);
		END IF;
		UPDATE uom SET code = r.code, name = r.name, category_id = k1,
			factor = r.factor, updated_at = r.updated_at
		WHERE id = k;
	END LOOP;

	-- category
	FOR r IN SELECT * FROM hq.category
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k1 FROM translation
		WHERE model = 3 AND remote_id = r.parent_id;
		SELECT local_id INTO k FROM translation
		WHERE model = 3 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM category WHERE code = r.code;
			IF k IS NULL THEN
				k := nextval('category_id_seq');
				INSERT INTO translation VALUES (3, k, r.id);
				INSERT INTO category (id, code, name, parent_id, updated_at)
				VALUES (k, r.code, r.name, k1, r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (3, k, r.id);
		END IF;
		UPDATE category SET code = r.code, name = r.name, parent_id = k1,
			updated_at = r.updated_at
		WHERE id = k;
	END LOOP;

	-- tax
	FOR r IN SELECT * FROM hq.tax
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k FROM translation
		WHERE model = 4 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM tax WHERE code = r.code;
			IF k IS NULL THEN
				k := nextval('tax_id_seq');
				INSERT INTO translation VALUES (4, k, r.id);
				INSERT INTO tax (id, code, name, rate, updated_at)
				VALUES (k, r.code, r.name, r.rate, r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (4, k, r.id);
		END IF;
		UPDATE tax SET code = r.code, name = r.name, rate = r.rate,
			updated_at = r.updated_at
		WHERE id = k;
	END LOOP;

	-- template
	FOR r IN SELECT * FROM hq.template
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k1 FROM translation
		WHERE model = 3 AND remote_id = r.category_id;
		SELECT local_id INTO k2 FROM translation
		WHERE model = 2 AND remote_id = r.uom_id;
		SELECT local_id INTO k3 FROM translation
		WHERE model = 4 AND remote_id = r.tax_id;
		SELECT local_id INTO k FROM translation
		WHERE model = 5 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM template WHERE code = r.code;
			IF k IS NULL THEN
				k := nextval('template_id_seq');
				INSERT INTO translation VALUES (5, k, r.id);
				INSERT INTO template (id, code, name, description,
					category_id, uom_id, tax_id, list_price, cost_price,
					active, updated_at)
				VALUES (k, r.code, r.name, r.description, k1, k2, k3,
					r.list_price, r.cost_price, r.active, r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (5, k, r.id);
		END IF;
		UPDATE template SET code = r.code, name = r.name,
			description = r.description, category_id = k1, uom_id = k2,
			tax_id = k3, list_price = r.list_price, cost_price = r.cost_price,
			active = r.active, updated_at = r.updated_at
		WHERE id = k;
	END LOOP;

	-- product
	FOR r IN SELECT * FROM hq.product
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k1 FROM translation
		WHERE model = 5 AND remote_id = r.template_id;
		SELECT local_id INTO k FROM translation
		WHERE model = 6 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM product WHERE sku = r.sku;
			IF k IS NULL THEN
				k := nextval('product_id_seq');
				INSERT INTO translation VALUES (6, k, r.id);
				INSERT INTO product (id, sku, template_id, variant, weight,
					active, updated_at)
				VALUES (k, r.sku, k1, r.variant, r.weight, r.active,
					r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (6, k, r.id);
		END IF;
		UPDATE product SET sku = r.sku, template_id = k1, variant = r.variant,
			weight = r.weight, active = r.active, updated_at = r.updated_at
		WHERE id = k;
	END LOOP;

	-- barcode
	FOR r IN SELECT * FROM hq.barcode
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k1 FROM translation
		WHERE model = 6 AND remote_id = r.product_id;
		SELECT local_id INTO k FROM translation
		WHERE model = 7 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM barcode WHERE code = r.code;
			IF k IS NULL THEN
				k := nextval('barcode_id_seq');
				INSERT INTO translation VALUES (7, k, r.id);
				INSERT INTO barcode (id, code, product_id, kind, updated_at)
				VALUES (k, r.code, k1, r.kind, r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (7, k, r.id);
		END IF;
		UPDATE barcode SET code = r.code, product_id = k1, kind = r.kind,
			updated_at = r.updated_at
		WHERE id = k;
	END LOOP;

	-- price_list
	FOR r IN SELECT * FROM hq.price_list
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k FROM translation
		WHERE model = 8 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM price_list WHERE code = r.code;
			IF k IS NULL THEN
				k := nextval('price_list_id_seq');
				INSERT INTO translation VALUES (8, k, r.id);
				INSERT INTO price_list (id, code, name, updated_at)
				VALUES (k, r.code, r.name, r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (8, k, r.id);
		END IF;
		UPDATE price_list SET code = r.code, name = r.name,
			updated_at = r.updated_at
		WHERE id = k;
	END LOOP;

	-- price_list_line
	FOR r IN SELECT * FROM hq.price_list_line
		WHERE updated_at > since ORDER BY id LOOP
		SELECT local_id INTO k1 FROM translation
		WHERE model = 8 AND remote_id = r.price_list_id;
		SELECT local_id INTO k2 FROM translation
		WHERE model = 6 AND remote_id = r.product_id;
		SELECT local_id INTO k FROM translation
		WHERE model = 9 AND remote_id = r.id;
		IF k IS NULL THEN
			SELECT id INTO k FROM price_list_line WHERE price_list_id = k1 AND product_id = k2;
			IF k IS NULL THEN
				k := nextval('price_list_line_id_seq');
				INSERT INTO translation VALUES (9, k, r.id);
				INSERT INTO price_list_line (id, price_list_id, product_id,
					price, min_qty, updated_at)
				VALUES (k, k1, k2, r.price, r.min_qty, r.updated_at);
				CONTINUE;
			END IF;
			INSERT INTO translation VALUES (9, k, r.id);
		END IF;
		UPDATE price_list_line SET price_list_id = k1, product_id = k2,
			price = r.price, min_qty = r.min_qty, updated_at = r.updated_at
		WHERE id = k;
	END LOOP;
END
$$;
